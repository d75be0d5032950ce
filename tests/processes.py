"""The processes of a test's own Ray."""

import psutil


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
