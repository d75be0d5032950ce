"""An index.html of all runs in a folder, with their headline figures.

    python jobs/index.py runs

Runs whose output is directly in that folder update it when they end; those without --output make it. Needs no cluster:
the folder may be an s3:// url.
"""

import sys

from ray_pipeline import cli, problems
from ray_pipeline.report import index


def main() -> int:
    """Parse and write; 0 done, 1 a problem of the user's."""
    parser = cli.command_line(__doc__)
    parser.add_argument(
        "folder", nargs="?", default="runs", help="folder or s3:// url of the runs' outputs (%(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show the stack trace of a problem")
    options = parser.parse_args()

    def write() -> int:
        print(index.write(options.folder))
        return problems.DONE

    return problems.exit_code(write, options.debug)


if __name__ == "__main__":
    sys.exit(main())
