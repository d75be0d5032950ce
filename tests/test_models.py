"""Models that cannot be had are named before anything is spent; a server here answers as the hub does."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from ray_pipeline import models
from ray_pipeline.errors import ModelError

ANSWERS = {"gated": (403, "GatedRepo"), "none": (404, "RepoNotFound"), "other": (404, "EntryNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Answers by the model's name; a model is `owner/<key of ANSWERS>`."""

    def do_HEAD(self) -> None:
        status, code = ANSWERS[self.path.split("/")[2]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/gated", None, r"train\.model owner/gated: is a gated model.*HF_TOKEN"),
        ("owner/none", "v2", r"train\.model owner/none, revision v2: .*no such model"),
        ("my models/x", None, "no such folder here"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_model_that_the_hub_does_not_give(
    hub: None, name: str, revision: str | None, message: str, here: bool
) -> None:
    with pytest.raises(ModelError, match=message):
        models.expect(name, revision, "train.model", here)


def test_a_model_without_that_file_is_there(hub: None) -> None:
    models.expect("owner/other", None, "embed.model", here=True)


def test_a_folder_needs_no_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    models.expect(str(tmp_path), None, "train.model", here=True)
    models.expect("sandbox://base", None, "train.model", here=True)


def test_a_folder_is_named_in_full_and_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert models.placed("own") == str(tmp_path / "own") == models.placed("./own")
    assert models.identity("own", None) == models.identity(models.placed("own"), None)
    assert [models.placed(name) for name in ("owner/model", "sandbox://base", "./none")] == [
        "owner/model", "sandbox://base", "./none",
    ]  # fmt: skip


def test_a_hub_that_is_not_reached_matters_where_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be reached"):
        models.expect("owner/never-seen", None, "train.model", here=True)
    models.expect("owner/never-seen", None, "train.model", here=False)
