"""The command line of the inspection job: an artifact's folder, or a stage's name, to text and a page."""

import argparse
import difflib
from collections.abc import Sequence

from ray_pipeline import cli, pipeline, problems, reading, storage, workers
from ray_pipeline.artifact import MANIFEST, Artifact
from ray_pipeline.errors import InputError
from ray_pipeline.inspection.page import page
from ray_pipeline.inspection.profile import profile
from ray_pipeline.inspection.text import show

LEAST_ROWS = 10_000_000
"""From which more processes are worth their start."""


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns 0 for done, 1 for a problem of the user's. Wrong usage exits with 2."""
    options = _parser(description).parse_args(arguments)
    return problems.exit_code(lambda: _inspect(options), options.debug)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = cli.command_line(description)
    parser.add_argument("artifact", help="folder or s3:// url of an artifact, or a stage's name: its newest one")
    parser.add_argument("--html", metavar="PAGE", help="also write an HTML page: a file or s3:// url")
    parser.add_argument("--examples", type=_count, default=5, help="number of rows to show (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed for choosing rows (%(default)s)")
    workers.add_options(parser, LEAST_ROWS)
    cli.add_common(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 1000")
    return int(text)


def _inspect(options: argparse.Namespace) -> int:
    item = _artifact(options.artifact, options.workdir)
    with workers.chosen(options, item.manifest.rows_out, LEAST_ROWS) as chosen:
        found = profile(item, options.examples, options.seed, chosen)
    print(show(found))
    if options.html:
        storage.write_bytes(options.html, page(found).encode())
        print(f"\n{options.html}")
    return problems.DONE


def _artifact(name: str, workdir: str) -> Artifact:
    is_stage = name in pipeline.STAGE_NAMES and not storage.exists(name)
    near = difflib.get_close_matches(name, pipeline.STAGE_NAMES, n=1)
    if near and not is_stage and not storage.list_files(name):
        raise InputError(f"{name}: is no stage and no artifact's folder; did you mean {near[0]}?")
    return reading.finished(_newest(workdir, name) if is_stage else name.rstrip("/"))


def _newest(workdir: str, stage: str) -> str:
    """The folder of a stage's artifact that was finished last."""
    folder = storage.join(workdir, stage)
    depth = folder.count("/") + 2
    manifests = [url for url in storage.list_files(folder) if storage.name(url) == MANIFEST and url.count("/") == depth]
    if not manifests:
        raise InputError(f"{folder}: holds no finished artifact; run jobs/{stage}.py first, or name another --workdir")
    return max(manifests, key=storage.modified).removesuffix(f"/{MANIFEST}")
