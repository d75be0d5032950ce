"""A device's memory that does not suffice: torch's word of it as ours, with what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_pipeline.errors import OutOfMemoryError


@contextmanager
def enough(said: Callable[[], OutOfMemoryError]) -> Iterator[None]:
    """Raise what is `said` in place of torch's error that a device has no memory left."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise said() from error
