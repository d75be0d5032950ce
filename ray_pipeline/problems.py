"""From an error to what the user sees: the typed problem within whatever Ray wraps it in, and the exit code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from ray_pipeline import logs
from ray_pipeline.errors import PipelineError

DONE, PROBLEM, STOPPED = 0, 1, 130
"""Exit codes; the last is that of Ctrl-C."""
RAY_ADVICE = "\nFailed to apply UDF transform after "
"""Begins what Ray Data appends to the message of a worker's error: advice on settings of Ray."""


@logs.about()
def exit_code(work: Callable[[], int], debug: bool) -> int:
    """The exit code of some work; a problem of the user's is printed and gives 1, unless `debug` lets it through.

    Ctrl-C gives 130.
    """
    try:
        return work()
    except KeyboardInterrupt:
        if debug:
            raise
        logs.tell("\nstopped; the same command goes on from here", "stopped")
        return STOPPED
    except Exception as error:
        problem = within(error)
        if debug or problem is None:
            raise
        logs.tell(f"\nerror: {problem}", "error", "ERROR")
        return PROBLEM


@contextmanager
def unwrapped() -> Iterator[None]:
    """Bring a PipelineError that was raised on a worker back out of what Ray wraps it in."""
    try:
        yield
    except Exception as error:
        found = within(error)
        if found is None or found is error:
            raise
        raise found from error


def first_fault(error: ValidationError) -> str:
    """Where a file is not of its form, and what is wrong there: the first of its faults."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def within(error: BaseException | None) -> PipelineError | None:
    """The PipelineError in a chain of causes, as it was raised on the worker; null if there is none.

    Ray's own error of the same type, whose message is a stack trace, leads to it by its `cause`.
    """
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, PipelineError) and not isinstance(getattr(current, "cause", None), PipelineError):
            current.args = (str(current).partition(RAY_ADVICE)[0],)
            return current
        inner = list(current.exceptions) if isinstance(current, BaseExceptionGroup) else []
        failures = getattr(current, "worker_failures", None) or {}
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__, *inner, *failures.values()]
    return None
