"""What is loaded from a hub that falters is tried again; what is wrong for good is not."""

import time
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ray_pipeline import hub
from ray_pipeline.errors import HubError


def answered(status: int) -> Exception:
    made = HfHubHTTPError.__new__(HfHubHTTPError)
    made.response = SimpleNamespace(status_code=status)
    return made


def wrapped(inner: Exception) -> Exception:
    """As transformers wraps what the hub's client raises."""
    try:
        try:
            raise inner
        except Exception as error:
            raise LocalEntryNotFoundError("not in the cache") from error
    except LocalEntryNotFoundError as error:
        outer = OSError("we couldn't connect")
        outer.__cause__ = error
        return outer


@pytest.mark.parametrize(
    ("error", "faltered"),
    [
        (answered(429), True),
        (answered(503), True),
        (answered(404), False),
        (answered(401), False),
        (HTTPError("no answer"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OfflineModeIsEnabled("offline"), False),
        (FileNotFoundError("model.safetensors"), False),
        (ValueError("429 connection timeout"), False),
    ],
)
def test_it_goes_by_type_and_status(error: Exception, faltered: bool) -> None:
    assert hub.faltered(error) is hub.faltered(wrapped(error)) is faltered


def test_it_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    answers: list[Exception | None] = [answered(429), ConnectionResetError(), None]

    def load() -> str:
        error = answers.pop(0)
        if error is not None:
            raise wrapped(error)
        return "model"

    assert hub.loaded("train.model a/b", load) == "model" and waited == list(hub.WAITS[:2])
    answers[:] = [answered(500)] * 4
    with pytest.raises(HubError, match="train.model a/b: the Hugging Face hub has failed 4 times"):
        hub.loaded("train.model a/b", load)
    answers[:] = [FileNotFoundError("model.safetensors"), None]
    with pytest.raises(OSError, match="couldn't connect"):
        hub.loaded("train.model a/b", load)
    assert len(answers) == 1
