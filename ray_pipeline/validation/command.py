"""The command line of the validation job: recipes, or a run's output folder, to a table of invariants."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ray_pipeline import cli, pipeline, problems, storage
from ray_pipeline import recipe as recipes
from ray_pipeline.errors import InputError
from ray_pipeline.inspection.text import aligned
from ray_pipeline.recipe import Recipe
from ray_pipeline.report.index import METRICS, RunFigures
from ray_pipeline.validation import across, files, kept, rows, submitted
from ray_pipeline.validation.check import FAILED, Check, Checks
from ray_pipeline.validation.files import Table

REPORT = "report.html"
RECIPE_TITLE = "Recipe "


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
    cli.add_common(parser, workdir=None)
    return parser


def _validate(options: argparse.Namespace) -> int:
    output = _output(options.items)
    if output is None:
        chosen, workdir = cli.recipes(options.items, options.workdir or cli.WORKDIR)
    else:
        _, workdir = cli.recipes([], options.workdir or recorded(output))
        chosen = cli.placed(reported(storage.read_bytes(storage.join(output, REPORT)).decode(), output), workdir)
    if not any(step.finished for recipe in chosen for step in pipeline.plan(recipe, workdir)):
        raise InputError(f"nothing of this run in {workdir}: name its --workdir")
    checks = check(chosen, workdir, output)
    print("\n".join(_lines(checks)))
    failed = [one for one in checks if one.result == FAILED]
    if failed:
        print(f"\nerror: {len(failed)} of {len(list(checks))} invariants are violated", file=sys.stderr)
    return problems.PROBLEM if failed else problems.DONE


def recorded(output: str) -> str:
    """The working folder that a run has left word of in its output folder; the usual one where it has not."""
    try:
        figures = TypeAdapter(RunFigures).validate_json(storage.read_bytes(storage.join(output, METRICS)))
    except (FileNotFoundError, ValidationError):
        return cli.WORKDIR
    return figures.workdir or cli.WORKDIR


def _output(items: Sequence[str]) -> str | None:
    """The output folder, if it is one that is named; null for recipes."""
    folders = [item for item in items if not cli.is_override(item) and not _is_recipe(item)]
    if not folders:
        return None
    if len(items) > 1:
        raise InputError(f"{folders[0]}: name one output folder alone, or recipe files (.yaml) and their values")
    if not storage.exists(storage.join(folders[0], REPORT)):
        raise InputError(f"{folders[0]}: holds no {REPORT}; name a run's output folder, or its recipe files (.yaml)")
    return folders[0].rstrip("/")


def _is_recipe(item: str) -> bool:
    return item.endswith((".yaml", ".yml")) or Path(item).is_file()


def check(chosen: Sequence[Recipe], workdir: str, output: str | None = None) -> Checks:
    """Look at every artifact that some recipes and their comparisons point to, each once, and at their outputs."""
    checks = Checks()
    known: dict[str, Table] = {}
    runs = []
    for recipe in chosen:
        runs.append((recipe, _look(recipe, workdir, known, checks)))
        if recipe.compare is not None:
            _look(recipes.variant(recipe, recipe.compare.set), workdir, known, checks)
    if output is not None:
        kept.look_at_outputs(output, runs, checks.outputs)
        evaluated = [(recipe, run["evaluate"]) for recipe, run in runs if "evaluate" in run]
        if len(evaluated) == len(chosen):
            submitted.look(output, evaluated, checks.submission)
    return checks


def _look(recipe: Recipe, workdir: str, known: dict[str, Table], checks: Checks) -> dict[str, Table]:
    """Look at the stages of one recipe; `known` holds, by folder, what was looked at before. Returns its stages."""
    run: dict[str, Table] = {}
    fresh: list[str] = []
    for step in pipeline.plan(recipe, workdir):
        done = step.finished is not None
        checks.finished.demand(done, step.folder, f"is not finished; run the recipe {recipe.name} again")
        if step.finished is not None:
            if step.folder not in known:
                known[step.folder] = files.look(step, step.finished, checks)
                fresh.append(step.stage.name)
            run[step.stage.name] = known[step.folder]
    for stage in fresh:
        rows.look(stage, run[stage], run, checks)
        kept.look(stage, run[stage], recipe, checks)
        across.unique(run[stage], checks.ids)
    files.look_between(run, checks.passed_on)
    if fresh:
        across.look(run, checks)
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


class _Reported(HTMLParser):
    """Collects the recipes that a report shows whole."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._tag, self._name = "", ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._tag = tag

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""
        if tag == "details":
            self._name = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "summary" and data.startswith(RECIPE_TITLE):
            self._name = data.removeprefix(RECIPE_TITLE)
        elif self._tag == "pre" and self._name:
            self.found[self._name] = self.found.get(self._name, "") + data


def reported(page: str, folder: str) -> list[Recipe]:
    """The recipes of a run as its report shows them, with all values that held; raises InputError for none."""
    parser = _Reported()
    parser.feed(page)
    parser.close()
    if not parser.found:
        raise InputError(f"{storage.join(folder, REPORT)}: shows no recipe; name the recipe files instead")
    return [recipes.validate(yaml.safe_load(text), f"{folder}, {name}") for name, text in parser.found.items()]
