"""How far a run is: what is done, begun and left of its stages, and what was spent, from what stands in its folder.

Reads manifests, the footers of shards and the ledger, on the local disk or S3; starts no Ray and asks nobody.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ray_pipeline import artifact, cli, pipeline, problems, storage
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import InputError
from ray_pipeline.gemini import ledger
from ray_pipeline.inspection.text import aligned
from ray_pipeline.recipe import Gemini, Recipe
from ray_pipeline.validation.command import REPORT, recorded, reported

DONE, BEGUN, LEFT = "done", "begun", "left"
HEADINGS = ("stage", "state", "shards", "rows in", "out", "rejected", "seconds", "USD", "artifact")
NUMBERS = (2, 3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Line:
    """One stage's artifact: finished, begun (running now or stopped), or not begun."""

    stage: str
    folder: str
    state: str
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    """Of a stage that is begun, the sum over the shards that are written."""
    seconds: float | None = None
    usd: float | None = 0.0
    """Null where the model's price is unknown."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The line of the table, in the order of HEADINGS."""
        if self.state == LEFT:
            return (self.stage, LEFT, "", "", "", "", "", "", storage.name(self.folder))
        counts = self.counts
        rows = [f"{number:,}" for number in (self.shards, counts.rows_in, counts.rows_out, counts.rows_rejected)]
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        usd = "unknown" if self.usd is None else f"{self.usd:.4f}" if self.usd else ""
        return (self.stage, self.state, *rows, seconds, usd, storage.name(self.folder))


def look(stage: str, folder: str) -> Line:
    """How far the artifact of a stage in a folder is; raises CorruptArtifactError for a damaged manifest."""
    found = artifact.load(folder)
    if found is not None:
        manifest = found.manifest
        counts = Counts(manifest.rows_in, manifest.rows_out, manifest.reasons)
        return Line(stage, folder, DONE, len(manifest.shards), counts, manifest.seconds, manifest.usd)
    names = artifact.present_shards(folder)
    if not names and not storage.list_files(folder):
        return Line(stage, folder, LEFT)
    counts = artifact.total(artifact.counts_of(folder, names))
    return Line(stage, folder, BEGUN, len(names), counts, usd=counts.extra.get("usd", 0.0))


def of_recipe(recipe: Recipe, workdir: str) -> list[Line]:
    """The stages of a recipe, in their order."""
    return [look(step.stage.name, step.folder) for step in pipeline.plan(recipe, workdir)]


def of_workdir(workdir: str) -> list[Line]:
    """Every artifact in a working folder, stage by stage, whichever recipes it belongs to."""
    found = []
    for stage in pipeline.STAGE_NAMES:
        folder = storage.join(workdir, stage)
        files = [url.removeprefix(f"{folder}/") for url in storage.list_files(folder)]
        names = sorted({file.split("/", 1)[0] for file in files if "/" in file})
        found += [look(stage, storage.join(folder, name)) for name in names]
    return found


def describe(title: str, lines: Sequence[Line]) -> Iterator[str]:
    """The stages as a table below a line that sums them up."""
    number = {state: sum(line.state == state for line in lines) for state in (DONE, BEGUN, LEFT)}
    seconds = sum(line.seconds or 0.0 for line in lines)
    summary = ", ".join(f"{count} {state}" for state, count in number.items() if count)
    yield f"{title}: {summary}; {seconds:.0f} s of work in finished stages"
    yield from aligned([HEADINGS, *(line.cells for line in lines)], NUMBERS)


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and tell; returns 0, or 1 for a problem of the user's. Wrong usage exits with 2."""
    parser = cli.command_line(description)
    parser.add_argument(
        "items",
        nargs="+",
        metavar="WORKDIR|RUN|RECIPE|key=value",
        help="a working folder, a run's output folder, or recipe files and values that override theirs",
    )
    cli.add_common(parser, workdir=None)
    options = parser.parse_intermixed_args(arguments)
    cli.expect_recipe(parser, options.items)
    return problems.exit_code(lambda: _tell(options), options.debug)


def _tell(options: argparse.Namespace) -> int:
    folders = [item.rstrip("/") for item in options.items if not _names_recipe(item)]
    if folders and len(options.items) > 1:
        raise InputError(f"{folders[0]}: name one folder alone, or recipe files (.yaml) and their values")
    whose = Gemini()
    if folders and not storage.exists(storage.join(folders[0], REPORT)):
        workdir, lines = folders[0], of_workdir(folders[0])
        if not lines:
            raise InputError(f"{workdir}: holds no artifacts and no {REPORT}; name a working folder or a run's output")
        told = list(describe(workdir, lines))
    else:
        chosen, workdir = _chosen(options, folders)
        whose = chosen[0].gemini
        told = [
            line
            for title, recipe in _with_comparisons(chosen)
            for line in describe(f"{title} ({recipe.task})", of_recipe(recipe, workdir))
        ]
    print("\n".join(told))
    print(f"all answers of Gemini in {workdir} have cost {ledger.spent(workdir, whose):.4f} USD")
    return problems.DONE


def _names_recipe(item: str) -> bool:
    return cli.is_override(item) or item.endswith((".yaml", ".yml"))


def _chosen(options: argparse.Namespace, folders: Sequence[str]) -> tuple[list[Recipe], str]:
    """The recipes that are named, or that the report of an output folder shows, and the working folder."""
    if not folders:
        return cli.recipes(options.items, options.workdir or cli.WORKDIR)
    _, workdir = cli.recipes([], options.workdir or recorded(folders[0]))
    page = storage.read_bytes(storage.join(folders[0], REPORT)).decode()
    return cli.placed(reported(page, folders[0]), workdir), workdir


def _with_comparisons(chosen: Sequence[Recipe]) -> Iterator[tuple[str, Recipe]]:
    for one in chosen:
        yield one.name, one
        if one.compare is not None:
            yield f"{one.name}, {one.compare.name}", recipes.variant(one, one.compare.set)
