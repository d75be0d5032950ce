"""The processes of a test's own Ray."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

SECONDS = 300.0
"""For which a moment is waited for."""


def named(part: str) -> list[psutil.Process]:
    """Those whose title holds a text: `_ShardWorker` for the actors that work on shards."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.NoSuchProcess:  # ended while it was looked at
            continue
        if part in title:
            found.append(child)
    return found


def kill_itself(*_: object) -> None:
    """End the process that runs this as the kernel does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def when(due: Callable[[], Any], action: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a moment has come; nothing if it does not come within minutes."""
    until = time.monotonic() + SECONDS

    def wait() -> None:
        while not due():
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
