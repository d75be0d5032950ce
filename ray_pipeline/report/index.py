"""`index.html` of a folder of runs: their headline figures, from what each run has left there."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from ray_pipeline import storage
from ray_pipeline.errors import InputError
from ray_pipeline.report import render
from ray_pipeline.run_folder import METRICS, REPORT

INDEX = "index.html"
ABLATION = "ablation.json"


@dataclass(frozen=True)
class TaskFigures:
    """What metrics.json says of a task; older ones lack some of it."""

    f1: float | None
    precision: float | None
    recall: float | None
    auroc: float | None
    threshold: float | None
    always_relevant_f1: float | None
    low: float | None = None
    high: float | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class RunFigures:
    """A run's metrics.json."""

    tasks: dict[str, TaskFigures]
    average_f1: float | None = None
    created: str | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Best:
    """The variant of the highest F1."""

    variant: str
    f1: float


@dataclass(frozen=True)
class StudyFigures:
    """What ablation.json says of a study."""

    name: str
    task: str
    variants: int
    seeds: int
    best: Best | None
    better: list[str]
    failed: int


@dataclass(frozen=True)
class AblationFigures:
    """An ablation's ablation.json."""

    studies: list[StudyFigures]
    created: str | None = None


FORMS: Mapping[str, TypeAdapter[RunFigures] | TypeAdapter[AblationFigures]] = {
    METRICS: TypeAdapter(RunFigures),
    ABLATION: TypeAdapter(AblationFigures),
}


@dataclass(frozen=True)
class Entry:
    """One run or study in a folder of its own."""

    name: str
    page: str
    """Link from the index to its report."""
    created: str
    """ISO 8601, UTC; empty where it is not known."""
    figures: RunFigures | AblationFigures


def write(folder: str) -> str:
    """Write the index of a folder or s3:// url; returns its url. Raises InputError where no run is in it."""
    runs, studies = (entries(folder, name) for name in (METRICS, ABLATION))
    if not runs and not studies:
        raise InputError(
            f"{folder}: no folder in it holds a {METRICS} or {ABLATION}; name the folder that holds the runs' outputs"
        )
    url = storage.join(folder, INDEX)
    storage.write_bytes(url, page(runs, studies).encode())
    return url


def refresh(output: str, start: bool = False) -> None:
    """Write the index of the folder that an output lies in again; with `start`, also if there is none yet."""
    folder, _, _ = output.rstrip("/").rpartition("/")
    if folder and (start or storage.exists(storage.join(folder, INDEX))):
        write(folder)


def entries(folder: str, file: str) -> list[Entry]:
    """The runs that have left a file directly below a folder of their own, the newest first."""
    found = []
    for url in storage.list_files(folder):
        parts = url.removeprefix(folder.rstrip("/") + "/").split("/")
        if len(parts) == 2 and parts[1] == file:
            figures = _ours(url, file)
            if figures is None:
                continue
            page = REPORT if file == METRICS else "ablation.html"
            found.append(Entry(parts[0], f"{quote(parts[0])}/{page}", figures.created or "", figures))
    return sorted(found, key=lambda one: (one.created, one.name), reverse=True)


def _ours(url: str, file: str) -> RunFigures | AblationFigures | None:
    """The figures in a file; null where another tool has left it."""
    data = storage.read_bytes(url)
    try:
        return FORMS[file].validate_json(data)
    except ValidationError:
        return None


def page(runs: list[Entry], studies: list[Entry]) -> str:
    """One self-contained HTML page."""
    return render.environment().get_template("index.html.j2").render(runs=runs, studies=studies)
