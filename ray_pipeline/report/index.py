"""`index.html` of a folder of runs: their headline figures, from what each run has left there."""

import json
from dataclasses import dataclass
from typing import Any

from ray_pipeline import storage
from ray_pipeline.errors import InputError
from ray_pipeline.report import render

INDEX = "index.html"
METRICS, ABLATION = "metrics.json", "ablation.json"


@dataclass(frozen=True)
class Entry:
    """One run or study in a folder of its own."""

    name: str
    page: str
    """Path of its report from the index."""
    created: str
    """ISO 8601, UTC; empty where it is not known."""
    figures: dict[str, Any]
    """What its metrics.json or ablation.json says."""


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


def refresh(output: str) -> None:
    """Write the index of the folder that an output lies in again, if there is one."""
    folder, _, _ = output.rstrip("/").rpartition("/")
    if folder and storage.exists(storage.join(folder, INDEX)):
        write(folder)


def entries(folder: str, file: str) -> list[Entry]:
    """The runs that have left a file directly below a folder of their own, the newest first."""
    found = []
    for url in storage.list_files(folder):
        parts = url.removeprefix(folder.rstrip("/") + "/").split("/")
        if len(parts) == 2 and parts[1] == file:
            figures = _ours(url, "tasks" if file == METRICS else "studies")
            if figures is None:
                continue
            page = "report.html" if file == METRICS else "ablation.html"
            found.append(Entry(parts[0], f"{parts[0]}/{page}", figures.get("created") or "", figures))
    return sorted(found, key=lambda one: (one.created, one.name), reverse=True)


def _ours(url: str, part: str) -> dict[str, Any] | None:
    """The figures in a file; null where it is not one of ours."""
    try:
        found = json.loads(storage.read_bytes(url))
    except ValueError:
        return None
    return found if isinstance(found, dict) and part in found else None


def page(runs: list[Entry], studies: list[Entry]) -> str:
    """One self-contained HTML page."""
    return render.environment().get_template("index.html.j2").render(runs=runs, studies=studies)
