"""Learning curves for TensorBoard, as one file of events."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ray_pipeline import storage

FOLDER = "tensorboard"
FILE = "events.out.tfevents.curves"


def write(history: Sequence[dict[str, float]], url: str) -> None:
    """Write the curves `train/loss`, `tune/f1`, … over steps into a folder; what was there of them is replaced."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(logdir=folder, write_to_disk=True) as writer:
            for row in history:
                for name, value in row.items():
                    part, _, figure = name.partition("_")
                    if part in ("train", "tune"):
                        writer.add_scalar(f"{part}/{figure}", value, int(row["step"]))
        (file,) = Path(folder).iterdir()
        storage.copy_file(file, storage.join(url, FILE))
