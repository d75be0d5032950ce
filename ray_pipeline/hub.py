"""The Hugging Face hub where it falters: what is loaded from it is tried again."""

import logging
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TypeVar

from ray_pipeline.errors import HubError, PipelineError

WAITS = (5.0, 20.0, 60.0)
"""Seconds before each further try."""
LOG = logging.getLogger(__name__)
T = TypeVar("T")


def loaded(what: str, load: Callable[[], T]) -> T:
    """What `load` gives; raises HubError, which names `what`, where the hub still falters at the last try."""
    for seconds in (*WAITS, None):
        try:
            return load()
        except PipelineError:
            raise
        except Exception as error:
            if not faltered(error):
                raise
            if seconds is None:
                raise HubError(
                    f"{what}: the Hugging Face hub has failed {len(WAITS) + 1} times: {error}; check the network, and "
                    "run the same command again, or load the model from a folder"
                ) from error
            LOG.warning("%s: the Hugging Face hub fails, the next try is in %g s: %s", what, seconds, error)
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def faltered(error: BaseException) -> bool:
    """Whether the network, or for a while the hub, is behind an error; not where it is set offline."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    chain = list(_causes(error))
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return False
    return any(
        _for_a_while(getattr(one, "response", None)) if isinstance(one, HTTPError)
        else isinstance(one, ConnectionError | TimeoutError)
        for one in chain
    )  # fmt: skip


def refuses_token(error: BaseException) -> bool:
    """Whether there is a token, and the hub itself, not something on the way to it, does not let it in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import DisabledRepoError, HfHubHTTPError

    refused = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    return get_token() is not None and any(
        isinstance(one, HfHubHTTPError)
        and not isinstance(one, DisabledRepoError)
        and one.response.status_code in refused
        and any(name in one.response.headers for name in ("X-Error-Code", "X-Error-Message"))
        for one in _causes(error)
    )


def _for_a_while(response: object) -> bool:
    """Whether an HTTP error can pass: without an answer it was the network."""
    status = getattr(response, "status_code", None)
    return status is None or status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
