"""Peak memory: of this process, or of a driver and Ray's processes below it, by looking again and again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.25


@dataclass
class Peaks:
    """Peak resident memory in MiB: of the driver, of a worker, of the quota's actor."""

    driver: float = 0.0
    worker: float = 0.0
    quota: float = 0.0


def own_peak() -> float:
    """Peak resident memory of this process in MiB, by Linux; getrusage may give that of its parent instead."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10


@contextmanager
def peaks(worker: str = "ray::") -> Iterator[Peaks]:
    """Sample this process and those of Ray below it until the block ends; a worker's title begins with `worker`."""
    import psutil  # type: ignore[import-untyped]

    own, found, ended = psutil.Process(), Peaks(), threading.Event()

    def sample() -> None:
        found.driver = max(found.driver, own.memory_info().rss / 2**20)
        for process in own.children(recursive=True):
            try:
                title, size = (process.cmdline() or [""])[0], process.memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                continue
            if title.startswith("ray::QuotaActor"):
                found.quota = max(found.quota, size)
            elif title.startswith(worker):
                found.worker = max(found.worker, size)

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
