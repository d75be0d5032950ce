"""A device's memory that does not suffice: torch's word of it as ours, with what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_pipeline.errors import OutOfMemoryError

REFUSED = 2
"""What CUDA and HIP call an allocation that they have refused."""


@contextmanager
def enough(said: Callable[[], OutOfMemoryError]) -> Iterator[None]:
    """Raise what is `said` in place of torch's error that a device has no memory left."""
    try:
        yield
    except RuntimeError as error:
        if not is_lack(error):
            raise
        raise said() from error


def is_lack(error: RuntimeError) -> bool:
    """Whether torch says by its type or its number that a device has no memory left.

    torch's own allocator has a type for it, the driver's refusal a number. What cuBLAS is refused for itself comes as a
    plain RuntimeError, which only its text tells from a defect.
    """
    import torch

    driver = isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) == REFUSED
    return driver or isinstance(error, torch.OutOfMemoryError)
