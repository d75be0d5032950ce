"""How far a run is: what is done, begun and left of its stages, and what was spent, from what stands in its folder.

Reads manifests, the footers of shards and the ledger, on the local disk or S3; starts no Ray and asks nobody.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ray_pipeline import artifact, cli, difference, pipeline, problems, run_folder, storage, telemetry
from ray_pipeline import recipe as recipes
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import CorruptArtifactError, InputError
from ray_pipeline.gemini import ledger
from ray_pipeline.inspection.text import aligned
from ray_pipeline.pipeline import Step
from ray_pipeline.recipe import Gemini, Recipe
from ray_pipeline.report.index import ABLATION
from ray_pipeline.run_folder import METRICS, RECORD, REPORT, Record

DONE, BEGUN, LEFT, UNREADABLE = "done", "begun", "left", "unreadable"
HEADINGS = ("stage", "state", "shards", "rows in", "out", "rejected", "MB", "seconds", "USD", "made", "artifact")
NUMBERS = (2, 3, 4, 5, 6, 7, 8)
MEGABYTE = 10**6


@dataclass(frozen=True)
class Line:
    """One stage's artifact: finished, begun (running now or stopped), not begun, or not to be read."""

    stage: str
    folder: str
    state: str
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    """The stage's counts; of one that is begun, the sum over the shards that are written."""
    seconds: float | None = None
    usd: float | None = 0.0
    """What its answers have cost; null where the model's price is unknown."""
    bytes: int = 0
    """The bytes of the stage's shards."""
    created: str | None = None
    """ISO 8601, UTC."""
    why: str | None = None
    """What is to be said of its state."""
    spilled: int = 0
    """Bytes that Ray's object store wrote to disk while it was made."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The line of the table, in the order of HEADINGS."""
        if self.state in (LEFT, UNREADABLE):
            return (self.stage, self.state, *[""] * (len(HEADINGS) - 3), storage.name(self.folder))
        counts = self.counts
        rows = [f"{number:,}" for number in (self.shards, counts.rows_in, counts.rows_out, counts.rows_rejected)]
        size = f"{self.bytes / MEGABYTE:,.1f}"
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        usd = "unknown" if self.usd is None else f"{self.usd:.4f}" if self.usd else ""
        day = (self.created or "").partition("T")[0]
        return (self.stage, self.state, *rows, size, seconds, usd, day, storage.name(self.folder))


def look(stage: str, folder: str) -> Line:
    """How far the artifact of a stage in a folder is."""
    try:
        return _look(stage, folder)
    except CorruptArtifactError as error:
        return Line(stage, folder, UNREADABLE, why=str(error))


def _look(stage: str, folder: str) -> Line:
    found = artifact.load(folder)
    if found is not None:
        manifest = found.manifest
        counts = Counts(manifest.rows_in, manifest.rows_out, manifest.reasons)
        usd, size, created = manifest.answers_usd, manifest.bytes, manifest.created
        shards, spilled = len(manifest.shards), manifest.spilled_bytes
        return Line(stage, folder, DONE, shards, counts, manifest.seconds, usd, size, created, spilled=spilled)
    names = artifact.present_shards(folder)
    if not names and not storage.list_files(folder):
        return Line(stage, folder, LEFT)
    counts = artifact.total(artifact.counts_of(folder, names))
    usd = counts.extra.get("answers_usd", counts.extra.get("usd", 0.0))
    size = sum(storage.list_sizes(folder, "part-").values())
    return Line(stage, folder, BEGUN, len(names), counts, usd=usd, bytes=size)


def of_record(fingerprints: Mapping[str, str], workdir: str) -> list[Line]:
    """The artifacts of a run, by their stages."""
    return [look(stage, storage.join(workdir, stage, one)) for stage, one in fingerprints.items()]


def of_recipe(recipe: Recipe, workdir: str) -> list[Line]:
    """The stages of a recipe, in their order."""
    steps = pipeline.plan(recipe, workdir)
    lines = [_of_step(step) for step in steps]
    return [replace(line, why=line.why or difference.told(step)) for line, step in zip(lines, steps, strict=True)]


def _of_step(step: Step) -> Line:
    found = look(step.stage.name, step.folder)
    stale = found.state == DONE and step.finished is None
    return Line(found.stage, found.folder, LEFT) if stale else found


def of_workdir(workdir: str) -> list[Line]:
    """Every artifact in a working folder, stage by stage, whichever recipes it belongs to."""
    found = []
    for stage in pipeline.STAGE_NAMES:
        folder = storage.join(workdir, stage)
        files = [url.removeprefix(f"{folder}/") for url in storage.list_files(folder)]
        names = sorted({file.split("/", 1)[0] for file in files if "/" in file})
        found += [look(stage, storage.join(folder, name)) for name in names]
    return found


def unused(workdir: str, folders: Sequence[str]) -> list[Line]:
    """The artifacts in a working folder that no run in or below some folders has made or used, with all their bytes.

    Raises InputError where a folder holds no run, or a run's record is missing or damaged.
    """
    used: set[str] = set()
    for folder in folders:
        files = storage.list_files(folder)
        runs = {url.rpartition("/")[0] for url in files if storage.name(url) in (RECORD, METRICS, ABLATION)}
        if not runs:
            raise InputError(f"{folder}: holds no run's output; name the folder that the runs' outputs are in")
        for place in sorted(runs):
            record = run_folder.recorded(place)
            if record is None:  # without it, all that the run has made would be listed
                raise InputError(f"{storage.join(place, RECORD)}: is missing or damaged; run the run's command again")
            used |= {one for made in record.made.values() for one in made.all}
    rest = [line for line in of_workdir(workdir) if f"{line.stage}/{storage.name(line.folder)}" not in used]
    return [replace(line, bytes=_bytes(line.folder)) if line.state == DONE else line for line in rest]


def _bytes(folder: str) -> int:
    return sum(storage.for_each(storage.size, storage.list_files(folder)))


def describe(title: str, lines: Sequence[Line]) -> Iterator[str]:
    """The stages as a table below a line that sums them up, and what else is to be said of each."""
    number = {state: sum(line.state == state for line in lines) for state in (DONE, BEGUN, LEFT, UNREADABLE)}
    seconds = sum(line.seconds or 0.0 for line in lines)
    summary = ", ".join(f"{count} {state}" for state, count in number.items() if count)
    size = sum(line.bytes for line in lines) / MEGABYTE
    yield f"{title}: {summary or 'none'}; {size:,.1f} MB; {seconds:.0f} s of work in finished stages"
    yield from aligned([HEADINGS, *(line.cells for line in lines)], NUMBERS)
    yield from (f"  {line.stage}: {line.why}" for line in lines if line.why)
    for line in lines:
        if line.spilled:
            written = telemetry.megabytes(line.spilled)
            yield f"  {line.stage}: Ray's object store had no room and spilled {written}: {telemetry.MORE_ROOM}"


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and tell; returns 0, or 1 for a problem of the user's. Wrong usage exits with 2."""
    parser = cli.command_line(description)
    parser.add_argument(
        "items",
        nargs="+",
        metavar="WORKDIR|RUN|RECIPE|key=value",
        help="a working folder, a run's output folder, or recipe files and values that override theirs",
    )
    parser.add_argument(
        "--unused", nargs="+", metavar="RUNS", help="list what no run in or below these output folders has made or used"
    )
    cli.add_common(parser, workdir=None)
    options = parser.parse_intermixed_args(arguments)
    cli.expect_recipe(parser, options.items)
    return problems.exit_code(lambda: _tell(options), options.debug)


def _tell(options: argparse.Namespace) -> int:
    folders = [item.rstrip("/") for item in options.items if not _names_recipe(item)]
    if folders and len(options.items) > 1:
        raise InputError(f"{folders[0]}: name one folder alone, or recipe files (.yaml) and their values")
    if options.unused:
        return _tell_unused(folders, options.unused)
    whose = Gemini()
    if folders and not run_folder.is_run(folders[0]):
        workdir = folders[0]
        told = list(describe(workdir, _in_workdir(workdir)))
    else:
        chosen, workdir, record = _chosen(options, folders)
        whose = chosen[0].gemini
        told = [line for one in chosen for line in _with_comparison(one, workdir, record)]
    print("\n".join(told))
    print(f"all answers of Gemini in {workdir} have cost {ledger.spent(workdir, whose):.4f} USD")
    return problems.DONE


def _tell_unused(folders: Sequence[str], runs: Sequence[str]) -> int:
    if not folders:
        raise InputError("--unused: name the working folder, and behind it the folders of the runs' outputs")
    _in_workdir(folders[0])
    print("\n".join(describe(f"{folders[0]}, in no run's record", unused(folders[0], runs))))
    print("nothing is deleted; what is begun may belong to a run that is under way, or that can go on")
    return problems.DONE


def _in_workdir(folder: str) -> list[Line]:
    lines = of_workdir(folder)
    if not lines:
        raise InputError(f"{folder}: holds no artifacts and no {REPORT}; name a working folder or a run's output")
    return lines


def _names_recipe(item: str) -> bool:
    return cli.is_override(item) or item.endswith((".yaml", ".yml"))


def _chosen(options: argparse.Namespace, folders: Sequence[str]) -> tuple[list[Recipe], str, Record | None]:
    """The recipes that are named, or those of an output folder; the working folder; the record of the run."""
    if folders:
        return cli.of_run(folders[0], options.workdir)
    return *cli.recipes(options.items, options.workdir or cli.WORKDIR), None


def _with_comparison(one: Recipe, workdir: str, record: Record | None) -> Iterator[str]:
    made = record.made.get(one.name) if record else None
    found = of_record(made.artifacts, workdir) if made else of_recipe(one, workdir)
    yield from describe(f"{one.name} ({one.task})", found)
    if one.compare is not None:
        other = recipes.variant(one, one.compare.set)
        found = of_record(made.compared, workdir) if made else of_recipe(other, workdir)
        yield from describe(f"{one.name}, {one.compare.name} ({other.task})", found)
