"""Learning curves for TensorBoard, as one file of events."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_pipeline import storage

FOLDER = "tensorboard"
FILE = "events.out.tfevents.curves"


def named(row: Mapping[str, float]) -> dict[str, float]:
    """The figures of an evaluation under the names of their curves: `train/loss`, `tune/f1`, …"""
    parts = {name: name.partition("_") for name in row}
    return {f"{part}/{figure}": row[name] for name, (part, _, figure) in parts.items() if part in ("train", "tune")}


def write(history: Sequence[dict[str, float]], url: str) -> None:
    """Write the curves over steps into a folder; what was there of them is replaced."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(logdir=folder, write_to_disk=True) as writer:
            for row in history:
                for name, value in named(row).items():
                    writer.add_scalar(name, value, int(row["step"]))
        (file,) = Path(folder).iterdir()
        storage.copy_file(file, storage.join(url, FILE))
