"""Whether a checkpoint is whole: each worker leaves the hashes of the files that it has written. Plain files only."""

import json
from pathlib import Path

from ray_pipeline import storage

SEAL = "seal-{}.json"
DEEPSPEED_SHARES = "engine/*/*_optim_states.pt"
"""In a checkpoint: what each worker's optimiser held, in DeepSpeed's own form."""


def seal(folder: Path, rank: int, workers: int) -> None:
    """Note the hashes of a worker's files; called when all are written."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashes = {name: storage.content_hash(str(path)) for name, path in files.items()}
    (folder / SEAL.format(rank)).write_text(json.dumps({"workers": workers, "hashes": hashes}))


def workers(folder: Path) -> int:
    """How many have written a checkpoint."""
    return int(json.loads((folder / SEAL.format(0)).read_text())["workers"])


def foreign(folder: Path, workers: int) -> str | None:
    """Why so many workers cannot go on from a whole checkpoint; null if they can: DeepSpeed's own are for as many."""
    shares = len(list(folder.glob(DEEPSPEED_SHARES)))
    if shares in (0, workers):
        return None
    return f"DeepSpeed has shared its optimiser out among {shares} worker(s), and now there are {workers}"


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as one line that names the file; null for one that is whole."""
    workers, rank = 1, 0
    while rank < workers:
        path = folder / SEAL.format(rank)
        try:
            sealed = json.loads(path.read_text())
            workers, hashes = int(sealed["workers"]), dict(sealed["hashes"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            return f"{path.name} cannot be read ({type(error).__name__})"
        for name, expected in hashes.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if storage.content_hash(str(folder / name)) != expected:
                return f"{name} has changed since it was written"
        rank += 1
    return None
