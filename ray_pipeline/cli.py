"""The command line that all jobs share: recipes, overrides, working folder, exit codes."""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from ray_pipeline import cross_task, logs, models, outputs, pipeline, problems, rawfiles, recipe, runtime, s3, storage
from ray_pipeline.dry_run import describe
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Recipe, Section
from ray_pipeline.report import index
from ray_pipeline.run_folder import RECORD, Record, recorded, recorded_recipes
from ray_pipeline.sandbox import serving

OVERRIDE = re.compile(r"[\w.-]+=")
MODELS = ("train.model", "embed.model", "audit.similarity_model", "translate.local.model")
"""Fields that may name a folder."""
WORKDIR = "runs/work"
WHOLE = (None, pipeline.STAGE_NAMES[-1])
"""Last stages of a run that ends with a report."""
SectionT = TypeVar("SectionT", bound=Section)


def main(description: str, until: str | None = None, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a job and exit, leaving Ray; see `run`."""
    logs.start()
    try:
        sys.exit(run(description, until, arguments))
    finally:
        runtime.stop()


def run(description: str, until: str | None = None, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns 0 for done, 1 for a problem of the user's, which is printed.

    `until` fixes the last stage, for the job file of a single stage. Wrong usage exits with 2.
    """
    parser = _parser(description, until)
    options = parser.parse_intermixed_args(arguments)
    expect_recipe(parser, options.recipes)
    if options.output and options.until not in WHOLE:
        parser.error("--output: only a run to the last stage writes there; leave out --output or --until")
    return problems.exit_code(lambda: _run(options), options.debug)


def command_line(description: str) -> argparse.ArgumentParser:
    """An empty command line whose help shows a job's docstring as it stands."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, epilog=logs.HELP, formatter_class=form)


def at_least_one(text: str) -> int:
    """An option's whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    """An option's number from 0 to 1."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return found


def expect_recipe(parser: argparse.ArgumentParser, items: Sequence[str]) -> None:
    """Exit with 2 where nothing but values is named, or a key without its value."""
    if all(map(is_override, items)):
        parser.error("no recipe is named; see --help")
    for item in items:
        section, dot, _ = item.partition(".")
        whole = is_override(item) or item.endswith((".yaml", ".yml"))
        if dot and section in Recipe.model_fields and not whole:
            parser.error(f"{item}: a value is set by key=value, such as {item}=…")


def _parser(description: str, until: str | None) -> argparse.ArgumentParser:
    parser = command_line(description)
    parser.set_defaults(until=until, output=None)
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE|key=value", help="recipe files, and values that override theirs"
    )
    if until in WHOLE:
        parser.add_argument(
            "--output", help="folder or s3:// url of report and submission (runs/<names of the recipes>)"
        )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would run and what it would cost, and do nothing"
    )
    add_common(parser)
    if until is None:
        parser.add_argument("--until", choices=pipeline.STAGE_NAMES, help="the last stage to run")
    return parser


def add_common(parser: argparse.ArgumentParser, workdir: str | None = WORKDIR) -> None:
    """The options that every job has; `workdir` null: a run that is named knows its own."""
    known = workdir or f"the named run's, else {WORKDIR}"
    parser.add_argument("--workdir", default=workdir, help=f"folder or s3:// url of all artifacts ({known})")
    parser.add_argument("--debug", action="store_true", help="show the stack trace of a problem")


def recipes(items: Sequence[str], folder: str) -> tuple[list[Recipe], str]:
    """The recipes that arguments name, with those of the form key=value applied, and the working folder's full url."""
    workdir = _full(folder)
    overrides = [item for item in items if is_override(item)]
    return _read([item for item in items if not is_override(item)], overrides, workdir), workdir


def of_run(output: str, folder: str | None) -> tuple[list[Recipe], str, Record | None]:
    """The recipes of a run, its working folder's full url (null: as recorded) and its record.

    Null for no record, which is said.
    """
    record = recorded(output)
    if record is None:
        logs.tell(
            f"{storage.join(output, RECORD)} is missing or damaged: stages are looked up by the recipe as raw files, "
            "code and defaults are now; if these have changed since the run, its artifacts are not found",
            level="WARNING",
        )
    workdir = _full(folder or (record.workdir if record else WORKDIR))
    return placed(recorded_recipes(output, record), workdir), workdir, record


def _full(folder: str) -> str:
    return folder if storage.is_remote(folder) else os.path.abspath(folder)


def is_override(item: str) -> bool:
    """Whether an argument is a dotted key and its value; a path or url that holds `=` has a `/` or `:` before it."""
    return OVERRIDE.match(item) is not None


@rawfiles.seen_once()
def _run(options: argparse.Namespace) -> int:
    chosen, workdir = recipes(options.recipes, options.workdir)
    until: str | None = options.until
    if options.dry_run:
        print(describe(chosen, workdir, until))
        return problems.DONE
    names = "+".join(item.name for item in chosen)
    output = options.output or os.path.join("runs", names)
    if until in WHOLE:
        storage.expect_folder(output)
    with logs.about(run=output if until in WHOLE else names):
        runs = pipeline.run(chosen, workdir, until)
        if until is not None and until not in WHOLE:
            for run, _ in runs:
                url = run.artifacts[until].url
                logs.say(f"{run.recipe.name}: {url}", "output", recipe=run.recipe.name, url=url)
            return problems.DONE
        command = shlex.join(["python", *sys.argv])
        for url in outputs.write(runs, output, command):
            logs.say(url, "output", url=url)
        index.refresh(output, start=options.output is None)  # then it is a folder of runs
    return problems.DONE


def _read(files: Sequence[str], overrides: Sequence[str], workdir: str) -> list[Recipe]:
    chosen = [recipe.read(file, overrides) for file in files]
    names = [item.name for item in chosen]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PipelineError(f"two recipes are named {repeated[0]}: give each its own `name`")
    return placed(chosen, workdir)


def placed(chosen: Sequence[Recipe], workdir: str) -> list[Recipe]:
    """Recipes whose store can be reached from here on, whose sample shop, if they name it, is written, whose folders of
    models are full paths, and which have those of the other task from which they take something.
    """
    _reach_storage(chosen)
    return cross_task.paired([_with_full_paths(serving.with_shop(item, workdir)) for item in chosen])


def _with_full_paths(item: Recipe) -> Recipe:
    """The recipe, with the other task's and what it compares itself with, with full paths of its folders of models."""
    for field in MODELS:
        item = _placed(item, field.split("."))
    compare = item.compare
    if compare is not None:
        changes = {
            key: models.placed(value) if key in MODELS and value else value for key, value in compare.set.items()
        }
        compare = compare.model_copy(update={"set": changes})
    other = item.other and _with_full_paths(item.other)
    return item.model_copy(update={"compare": compare, "other": other})


def _placed(section: SectionT, field: Sequence[str]) -> SectionT:
    """Write the full path of a model's folder into a section's field, or into one below it; returns the section."""
    name, *below = field
    value = getattr(section, name)
    if value is None:
        return section
    return section.model_copy(update={name: _placed(value, below) if below else models.placed(value)})


def _reach_storage(chosen: Sequence[Recipe]) -> None:
    """Put the recipes' storage section into the environment, before anything is read and before Ray's workers start."""
    sections = {item.storage for item in chosen}
    if len(sections) > 1:
        names = ", ".join(item.name for item in chosen)
        raise PipelineError(f"{names}: one command speaks to one store; give the recipes the same storage section")
    for section in sections:
        os.environ.update(s3.environment(section))
