"""A trained adapter merged into its base: one model folder that needs no adapter, written only if its scores agree.

    python jobs/merge.py runs/work/train/<fingerprint>/adapter --output merged/
    python jobs/merge.py s3://my-bucket/work/train/<fingerprint>/adapter --output s3://my-bucket/runs/merged
    python jobs/merge.py runs/work/train/<fingerprint>/adapter --output merged/ --base /models/gemma --unchecked-base

An adapter of a base in 4 or 8 bits is merged into the weights that these bits stand for, written in 16 bits. How far
that changes the scores is measured on a sample of made-up pairs and printed; if it is more than --tolerance, nothing is
written. Needs no cluster: one process, on a machine whose main memory holds a whole copy of the base; scores are
computed on a GPU if there is one with room for it.
"""

import sys

from ray_pipeline import cli, problems
from ray_pipeline.scoring import adapters
from ray_pipeline.train.merge import merge


def main() -> int:
    """Parse the command line and run; the exit code is 0 for done, 1 for a problem of the user's, 2 for wrong usage."""
    parser = cli.command_line(__doc__)
    parser.add_argument("adapter", help="folder or s3:// url of a saved adapter")
    parser.add_argument("--base", help="the adapter's base model, if it has moved since training")
    parser.add_argument(
        "--unchecked-base",
        action="store_true",
        help="accept a base that cannot be verified as the one used in training, e.g. a local copy of a hub model",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that the base comes with, as training did"
    )
    parser.add_argument("--output", required=True, help="a new folder or s3:// url")
    parser.add_argument(
        "--precision", choices=["bfloat16", "float32"], help="of the merged model (default: as trained)"
    )
    parser.add_argument("--tolerance", type=float, help="how far a probability may change (default: by rounding)")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of a problem")
    options = parser.parse_args()

    def work() -> int:
        checked = not options.unchecked_base
        (chosen,) = adapters.read([options.adapter], options.base, checked, options.trust_remote_code)
        done = merge(options.adapter, options.output, options.precision, options.tolerance, chosen.saved)
        print(f"largest change of a probability over {done.rows} pairs: {done.max_abs_difference:.2g}")
        print(options.output)
        return problems.DONE

    return problems.exit_code(work, options.debug)


if __name__ == "__main__":
    sys.exit(main())
