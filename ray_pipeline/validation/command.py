"""The command line of the validation job: recipes, or a run's output folder, to a table of invariants."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_pipeline import artifact, cli, pipeline, problems, run_folder, storage, workers
from ray_pipeline import recipe as recipes
from ray_pipeline.errors import InputError
from ray_pipeline.inspection.text import aligned
from ray_pipeline.pipeline import Step
from ray_pipeline.recipe import Recipe
from ray_pipeline.run_folder import REPORT, Record
from ray_pipeline.validation import files, invariants, rows, side_files, submitted
from ray_pipeline.validation.check import FAILED, Check, Checks
from ray_pipeline.validation.files import Table
from ray_pipeline.workers import Workers

LEAST_ROWS = 2_000_000
"""The rows of all stages together from which more processes are worth their start."""
WORKERS = argparse.Namespace(workers=None, address=None)
"""The options of who looks, if they are not given."""


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns 0 if all invariants hold, else 1. Wrong usage exits with 2."""
    parser = _parser(description)
    options = parser.parse_intermixed_args(arguments)
    cli.expect_recipe(parser, options.items)
    return problems.exit_code(lambda: _validate(options), options.debug)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = cli.command_line(description)
    parser.add_argument(
        "items", nargs="+", metavar="RUN|RECIPE|key=value", help="a run's output folder, or its recipe files and values"
    )
    workers.add_options(parser, LEAST_ROWS)
    cli.add_common(parser, workdir=None)
    return parser


def _validate(options: argparse.Namespace) -> int:
    output = _output(options.items)
    record = None
    if output is None:
        chosen, workdir = cli.recipes(options.items, options.workdir or cli.WORKDIR)
    else:
        chosen, workdir, record = cli.of_run(output, options.workdir)
    checks = check(chosen, workdir, output, record, options)
    if checks.finished.violations == checks.finished.examined:
        raise InputError(f"nothing of this run in {workdir}: name its --workdir")
    print("\n".join(_lines(checks)))
    failed = [one for one in checks if one.result == FAILED]
    if failed:
        print(f"\nerror: {len(failed)} of {len(list(checks))} invariants are violated", file=sys.stderr)
    return problems.PROBLEM if failed else problems.DONE


def _output(items: Sequence[str]) -> str | None:
    """The output folder, if it is one that is named; null for recipes."""
    folders = [item for item in items if not cli.is_override(item) and not _is_recipe(item)]
    if not folders:
        return None
    if len(items) > 1:
        raise InputError(f"{folders[0]}: name one output folder alone, or recipe files (.yaml) and their values")
    if not run_folder.is_run(folders[0]):
        raise InputError(f"{folders[0]}: holds no {REPORT}; name a run's output folder, or its recipe files (.yaml)")
    return folders[0].rstrip("/")


def _is_recipe(item: str) -> bool:
    return item.endswith((".yaml", ".yml")) or Path(item).is_file()


@dataclass(frozen=True)
class Planned:
    """The stages that a recipe points to."""

    recipe: Recipe
    steps: Sequence[Step]
    compared: "Planned | None"
    """Those of the variant that it compares itself with."""


def check(
    chosen: Sequence[Recipe],
    workdir: str,
    output: str | None = None,
    record: Record | None = None,
    options: argparse.Namespace = WORKERS,
) -> Checks:
    """Look at every artifact that some recipes and their comparisons point to, each once, and at their outputs.

    Which these are is what the run's record says; without one it follows from today's raw files and code. The
    options say who looks, see `workers.chosen`; what is found does not depend on it.
    """
    planned = plan(chosen, workdir, record)
    with workers.chosen(options, _rows(planned), LEAST_ROWS) as who:
        return look(planned, output, who)


def plan(chosen: Sequence[Recipe], workdir: str, record: Record | None = None) -> list[Planned]:
    """What there is to look at."""
    found = []
    for recipe in chosen:
        made, compared = record.made.get(recipe.name) if record else None, None
        if recipe.compare is not None:
            other = recipes.variant(recipe, recipe.compare.set)
            compared = Planned(other, _steps(other, workdir, made.compared if made else None), None)
        found.append(Planned(recipe, _steps(recipe, workdir, made.artifacts if made else None), compared))
    return found


def _rows(planned: Iterable[Planned]) -> int:
    """All rows of the finished artifacts, each once."""
    steps = [step for one in planned for step in (*one.steps, *(one.compared.steps if one.compared else ()))]
    return sum({step.folder: step.finished.manifest.rows_out for step in steps if step.finished}.values())


def look(planned: Sequence[Planned], output: str | None, who: Workers) -> Checks:
    """Look at what is planned, and at what lies in an output folder."""
    checks, known = Checks(), dict[str, Table]()
    runs = []
    for one in planned:
        runs.append((one.recipe, _look(one, known, checks, who)))
        if one.compared is not None:
            _look(one.compared, known, checks, who)
    if output is not None:
        side_files.look_at_outputs(output, runs, checks.outputs)
        if all({"ingest", "evaluate"} <= set(run) for _, run in runs):
            submitted.look(output, runs, checks.submission)
    return checks


def _steps(recipe: Recipe, workdir: str, recorded: Mapping[str, str] | None) -> list[Step]:
    """The stages of a run by their recorded fingerprints; null: those that the recipe has today."""
    if recorded is None:
        return pipeline.plan(recipe, workdir)
    steps = []
    for stage in pipeline.STAGES:
        if stage.name in recorded:
            folder = storage.join(workdir, stage.name, recorded[stage.name])
            found = artifact.load(folder)
            config, inputs = (found.manifest.config, found.manifest.inputs) if found else ({}, {})
            reads = {name: recorded[name] for name in stage.reads if name in recorded}
            steps.append(Step(stage, config, inputs | reads, folder, found))
    return steps


def _look(planned: Planned, known: dict[str, Table], checks: Checks, who: Workers) -> dict[str, Table]:
    """Look at the stages of one recipe; `known` holds, by folder, what was looked at before. Returns its stages."""
    run: dict[str, Table] = {}
    fresh: list[str] = []
    for step in planned.steps:
        done = step.finished is not None
        checks.finished.demand(done, step.folder, f"is not finished; run the recipe {planned.recipe.name} again")
        if step.finished is not None:
            if step.folder not in known:
                known[step.folder] = files.look(step, step.finished, checks, who)
                fresh.append(step.stage.name)
            run[step.stage.name] = known[step.folder]
    for stage in fresh:
        rows.look(stage, run[stage], run, checks, who)
        side_files.look(stage, run[stage], planned.recipe, checks)
        invariants.unique(run[stage], checks.ids, who)
    files.look_between(run, checks.passed_on, who)
    if fresh:
        invariants.look(run, checks, who)
    return run


def _lines(checks: Checks) -> Iterator[str]:
    table = [("invariant", "result", "looked at", "violated")]
    table += [(one.name, one.result, f"{one.examined:,}", f"{one.violations:,}") for one in checks]
    yield from aligned(table, right=(2, 3))
    for one in checks:
        if one.violations:
            yield from _violations(one)


def _violations(one: Check) -> Iterator[str]:
    yield from ("", f"{one.name}: violated {one.violations:,} times (rows are counted from 0)")
    yield from (f"  {line}" for line in one.shown)
    if one.violations > len(one.shown):
        yield f"  … and {one.violations - len(one.shown):,} more"
