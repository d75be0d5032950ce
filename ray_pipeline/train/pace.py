"""How far a training is: its first worker tells it, and the driver, perhaps on another node, shows it.

They leave it in Ray's own store of small values: there is no process to start for it, and no file to wait for.
"""

import json
import time
from contextlib import suppress
from types import TracebackType

from ray.exceptions import RpcError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from ray_pipeline.progress import Watching

TELL_SECONDS = 1.0


def _key(folder: str) -> str:
    return f"ray_pipeline training {folder}"


class Teller:
    """Tells, of a training into a folder, after how many of its steps it is; at most once a second, but for the end."""

    def __init__(self, folder: str, total: int, batch_rows: int) -> None:
        self._key, self._total, self._batch_rows = _key(folder), total, batch_rows
        self._told = -TELL_SECONDS

    def __call__(self, step: int) -> None:
        """A step is done."""
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS or step == self._total:
            self._told = now
            with suppress(RpcError):  # the next one comes soon
                _internal_kv_put(self._key, json.dumps([step, self._total, self._batch_rows]))


class StepProgress(Watching):
    """A Progress by what the Teller of the same folder tells; a training that goes back to a checkpoint begins anew."""

    def __init__(self, label: str, folder: str) -> None:
        super().__init__(label, 0, "steps")
        self._key = _key(folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        with suppress(RpcError):
            _internal_kv_del(self._key)

    def look(self) -> None:
        """Show how far it is, if that is news."""
        told = None
        with suppress(RpcError):
            told = _internal_kv_get(self._key)
        if told is None:
            return
        step, total, batch_rows = json.loads(told)
        if not self._total or step < self._done:
            self.begin(step, total)
        elif step == self._done:
            return
        self.advance(step - self._done, rows=(step - self._done) * batch_rows)
