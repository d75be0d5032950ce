"""The command line of scoring: adapters and raw files instead of a recipe."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn, get_args

from pydantic import ValidationError

from ray_pipeline import cli, logs, models, problems, rawfiles, runtime, storage
from ray_pipeline.artifact import Artifact
from ray_pipeline.decision import Decision
from ray_pipeline.errors import InputError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Engine, QueryPrefix, Runtime
from ray_pipeline.scoring import adapters, decided, job, relevance, rows, vllm
from ray_pipeline.scoring.adapters import Adapter
from ray_pipeline.scoring.scorer import CPU_ROWS, GPU_TOKENS, Batches, Scorer
from ray_pipeline.train import card

ADAPTER = "--adapter"


def main(description: str) -> NoReturn:
    """Run the job and exit: with adapters if they are named, else a recipe up to the stage `score`."""
    arguments = sys.argv[1:]
    if not any(argument == ADAPTER or argument.startswith(f"{ADAPTER}=") for argument in arguments):
        cli.main(description, until="score")
    logs.start()
    try:
        sys.exit(run(description, arguments))
    finally:
        runtime.stop()


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns 0 for done, 1 for a problem of the user's. Wrong usage exits with 2."""
    options = _parser(description).parse_args(arguments)
    return problems.exit_code(lambda: _score(options), options.debug)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = cli.command_line(description)
    _add_rows(parser)
    _add_decision(parser)
    _add_workers(parser)
    _add_batches(parser)
    parser.add_argument("--debug", action="store_true", help="show the stack trace of a problem")
    return parser


def _add_rows(parser: argparse.ArgumentParser) -> None:
    """What is scored, with what, and where to."""
    add = parser.add_argument
    add(
        ADAPTER,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="adapters that training saved, local or s3://; several are averaged",
    )
    add("--base", help="the adapter's base model, if it has moved since training")
    add(
        "--unchecked-base",
        action="store_true",
        help="accept a base that cannot be verified as the one used in training, e.g. a local copy of a hub model; "
        "recorded in run.json",
    )
    add("--trust-remote-code", action="store_true", help="run the code that the base comes with, as training did")
    add("--input", nargs="+", required=True, metavar="PATH",
        help="files, folders or globs, local or s3://; paths and tags as in the adapter's training data")  # fmt: skip
    add("--input-format", choices=("auto", *get_args(rawfiles.Format)), default="auto",
        help="auto: by the files' endings; .txt and .json are JSON Lines (%(default)s)")  # fmt: skip
    add("--columns", nargs="+", type=_column, default=[], metavar="WHAT=COLUMN",
        help=f"which column holds what: {', '.join(rows.COLUMNS)}")  # fmt: skip
    add("--output", required=True, metavar="FOLDER", help="folder or s3:// url of the shards; another run's is refused")
    add(
        "--format",
        choices=get_args(job.Format),
        default=job.Job.format,
        help="csv or jsonl: write each shard in this format, too (%(default)s)",
    )


def _add_decision(parser: argparse.ArgumentParser) -> None:
    """Which rows count as relevant, and how many may be refused."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--threshold", type=cli.share, help="score from which a row counts as relevant (the adapter's own, else 0.5)"
    )
    how.add_argument(
        "--decision",
        metavar="FILE",
        help="decision-<recipe>.json of the run that made the adapters: its calibration and thresholds",
    )
    parser.add_argument(
        "--max-rejected-share",
        type=cli.share,
        default=job.Job.max_rejected_share,
        metavar="X",
        help="largest share of rejected rows; above it the job fails, but scored shards are kept (%(default)s)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    """What computes, where and how wide."""
    add, usual = parser.add_argument, Runtime()
    add(
        "--engine",
        choices=get_args(Engine),
        default=job.Job.engine,
        help="vllm needs the optional dependency of that name (%(default)s)",
    )
    add(
        "--workers",
        type=cli.at_least_one,
        help="number of workers (default: as many as the CPUs or GPUs that are up allow)",
    )
    add(
        "--gpus-per-worker",
        type=float,
        default=usual.gpus_per_worker,
        metavar="X",
        help="GPUs of a worker; 0: score on the CPU (%(default)s)",
    )
    add(
        "--cpus-per-worker",
        type=float,
        default=usual.cpus_per_worker,
        metavar="X",
        help="CPUs of a worker (%(default)s)",
    )
    add(
        "--accelerator-type", metavar="TYPE", help="use only GPUs of this type, by Ray's name, e.g. L40S (default: any)"
    )
    add(
        "--shard-rows",
        type=cli.at_least_one,
        default=job.Job.shard_rows,
        help="most rows in one shard (%(default)s)",
    )
    add("--address", default=usual.address, help="auto joins the Ray cluster that the job runs on (%(default)s)")


def _add_batches(parser: argparse.ArgumentParser) -> None:
    """How the model is used; all but --merge leaves the scores what they are."""
    add = parser.add_argument
    add(
        "--batch-rows",
        type=cli.at_least_one,
        help=f"rows in one forward pass (default: {CPU_ROWS} on a CPU, by tokens on a GPU)",
    )
    add(
        "--batch-tokens",
        type=cli.at_least_one,
        help="tokens in one forward pass, padding included; replaces --batch-rows; what does not fit is halved "
        f"(default on a GPU: {GPU_TOKENS})",
    )
    switch = argparse.BooleanOptionalAction
    add("--share-prefix", action=switch, default=True, help="compute what all prompts begin with once")
    add(
        "--query-prefix",
        choices=get_args(QueryPrefix),
        default=Batches.query_prefix,
        help="with it, compute a query once for its rows in a pass (%(default)s: where that spares enough)",
    )
    add("--unique", action=switch, default=True, help="score equal pairs of a shard once")
    add(
        "--merge",
        action="store_true",
        help="add a bfloat16 adapter to its base's weights: about a tenth faster on a GPU; refused if scores of a "
        "sample move further than rounding explains",
    )


def _column(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if name not in rows.COLUMNS or not equals or not column:
        raise argparse.ArgumentTypeError(f"{text!r} must be of the form {'|'.join(rows.COLUMNS)}=COLUMN")
    return name, column


def _score(options: argparse.Namespace) -> int:
    where = _where(options)
    if options.engine == "vllm":
        vllm.check(len(options.adapter), options.gpus_per_worker)
    base = options.base and models.placed(options.base)
    folders = [_full(folder) for folder in options.adapter]
    chosen = adapters.read(folders, base, not options.unchecked_base, options.trust_remote_code)
    first = chosen[0].saved
    if options.merge and options.engine == "transformers":
        adapters.expect_mergeable(first.train, len(chosen))
    _check_apart(options.input, options.output, options.format)
    files = rows.find(options.input, options.input_format)
    decision = _decision(options, chosen)
    needed = [*Prompt(first.task, first.prompt).optional, *(["language"] if decision.by == "language" else [])]
    columns = rows.columns(files, first.task, dict(options.columns), needed)
    digest = card.base_digest(first.train.model, first.train.revision) if options.unchecked_base else None
    wanted = job.Job(
        files=files,
        columns=columns,
        adapter=relevance.fingerprint(chosen),
        content=adapters.content(chosen),
        decision=decision,
        output=_full(options.output),
        format=options.format,
        shard_rows=options.shard_rows,
        workers=options.workers,
        runtime=where,
        unchecked_base=digest,
        engine=options.engine,
        merge=options.merge,
        spelling=first.spelling,
        max_rejected_share=options.max_rejected_share,
    )
    device = "cuda" if where.gpus_per_worker else "cpu"
    runtime.start(where)
    limits = (options.batch_rows, options.batch_tokens)
    batches = Batches(*limits, options.share_prefix, options.query_prefix, options.unique)
    with logs.about(run=wanted.output, stage=job.STAGE):
        found = job.run(wanted, partial(Scorer, chosen, device, batches, options.engine, options.merge))
        names = ("rows_in", "rows_out", "rows_rejected", "seconds")
        figures = {name: getattr(found.manifest, name) for name in names}
        logs.say(_account(found, decision), "stage_finished", url=found.url, **figures)
    return problems.DONE


def _where(options: argparse.Namespace) -> Runtime:
    """Raise InputError for what no worker can have."""
    names = ("address", "gpus_per_worker", "cpus_per_worker", "accelerator_type")
    try:
        return Runtime(**{name: getattr(options, name) for name in names})
    except ValidationError as error:
        option = problems.first_fault(error).replace("_", "-")
        raise InputError(f"--{option}; correct this option") from error


def _check_apart(inputs: Sequence[str], output: str, format: job.Format) -> None:
    """Raise InputError for an output that a second run, which may have to go on, would find among the input."""
    for path in inputs:
        if any(storage.expands_to(_full(path), storage.join(_full(output), name)) for name in job.written(format)):
            raise InputError(
                f"{output}: lies in the input {path}, where a second run would read it: name another --output"
            )


def _decision(options: argparse.Namespace, chosen: Sequence[Adapter]) -> Decision:
    if options.decision:
        return decided.read(_full(options.decision), chosen)
    return Decision(relevance.threshold(chosen) if options.threshold is None else options.threshold)


def _besides(decision: Decision) -> str:
    own = "" if decision.by == "task" else f", others by {decision.by.replace('_', ' ')}"
    return own + ("" if decision.calibration.kind == "none" else f"; calibrated by {decision.calibration.kind}")


def _full(url: str) -> str:
    return url if storage.is_remote(url) else os.path.abspath(os.path.expanduser(url))


def _account(found: Artifact, decision: Decision) -> str:
    manifest = found.manifest
    lines = [f"{manifest.rows_in} rows in, {manifest.rows_out} scored, {manifest.rows_rejected} rejected"]
    lines += [f"  {reason}: {count}" for reason, count in manifest.reasons.items()]
    lines += [
        f"{manifest.extra['truncated']} prompts truncated, {manifest.extra['repeated']} rows reused an identical row's "
        f"score; threshold {decision.threshold:.4f}{_besides(decision)}; {manifest.seconds:.1f} s",
        found.url,
    ]
    if repeated := manifest.extra.get("repeated_ids"):
        lines.insert(-1, f"warning: {repeated} rows have an id that another row also has; every row was scored")
    if job.UNCHECKED in manifest.inputs:
        lines.insert(-1, "warning: the base was not verified to be the one used in training (--unchecked-base)")
    return "\n".join(lines)
