"""The command line of an ablation."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from ray_pipeline import cli, logs, problems, rawfiles, storage
from ray_pipeline.ablation import matrix, runs, table
from ray_pipeline.report import index


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse and run; 0 done, 1 a problem of the user's or a run that failed; wrong usage exits with 2."""
    parser = _parser(description)
    options = parser.parse_intermixed_args(arguments)
    cli.expect_recipe(parser, options.items)
    return problems.exit_code(lambda: _run(options), options.debug)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = cli.command_line(description)
    parser.add_argument(
        "items", nargs="+", metavar="MATRIX|RECIPE|key=value",
        help="matrix files; or recipes, the first of each task being the baseline; and values for all of them, in "
        "place of a matrix's own for all, but not of a variant's",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="seeds to run, instead of the matrix file's (default 0)"
    )
    parser.add_argument("--output", help="folder or s3:// url of the table (runs/ablation-<names>)")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and do nothing")
    cli.add_common(parser)
    return parser


@rawfiles.seen_once()
def _run(options: argparse.Namespace) -> int:
    studies, workdir = matrix.read(options.items, options.workdir, options.seeds)
    if options.dry_run:
        print(runs.plan(studies, workdir))
        return problems.DONE
    output = options.output or os.path.join("runs", "-".join(["ablation", *(study.name for study in studies)]))
    storage.expect_folder(output)
    command, found, written = shlex.join(["python", *sys.argv]), [], []
    with logs.about(run=output):
        for found in runs.rounds(studies, workdir):
            written = table.write(studies, found, output, command)  # after each seed: a long one shows what it knows
        index.refresh(output, start=options.output is None)  # then it is a folder of runs
        for url in written:
            logs.say(url, "output", url=url)
    return problems.PROBLEM if any(run.problem for run in found) else problems.DONE
