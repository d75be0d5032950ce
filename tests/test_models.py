"""Models that cannot be had are named before anything is spent; a server here answers as the hub does."""

import json
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from ray_pipeline import models, node_folder, storage
from ray_pipeline.errors import ModelError

ANSWERS = {
    "gated": (403, "GatedRepo"), "none": (404, "RepoNotFound"), "other": (404, "EntryNotFound"),
    "narrow": (403, "Forbidden"), "expired": (401, ""),
}  # fmt: skip
INVALID = "Invalid credentials in Authorization header"
LISTED = {
    "pickled": ["config.json", "modules.json", "pytorch_model.bin", "onnx/model.onnx"],
    "sharded": ["0_Transformer/config.json", "0_Transformer/pytorch_model.bin.index.json"],
    "both": ["config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors"],
    "dense": ["config.json", "model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin"],
    "static": ["modules.json", "pytorch_model.bin"],
}
"""Files of the models that the hub has."""
KNOB = "embed.pickled_weights"


class Hub(BaseHTTPRequestHandler):
    """Answers by the model's name; a model is `owner/<key of ANSWERS or of LISTED>`."""

    def do_HEAD(self) -> None:
        status, code = ANSWERS[self.path.split("/")[2]]
        self.send_response(status)
        self.send_header(*("X-Error-Code", code) if code else ("X-Error-Message", INVALID))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self) -> None:
        name = self.path.split("/")[4]  # /api/models/owner/NAME…
        files = [{"rfilename": file} for file in LISTED[name]]
        body = json.dumps({"id": f"owner/{name}", "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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
    monkeypatch.setattr(constants, "ENDPOINT", address)
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
        ("owner/narrow", None, r"train\.model owner/narrow: .*refuses the token \(HF_TOKEN, or"),
        ("owner/expired", None, r"train\.model owner/expired: .*refuses the token \(HF_TOKEN, or"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_model_that_the_hub_does_not_give(
    hub: None, name: str, revision: str | None, message: str, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(ModelError, match=message):
        models.expect(name, revision, "train.model", here)


def test_who_has_no_token_is_not_told_of_one(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    models.expect("owner/narrow", None, "train.model", here=False)
    with pytest.raises(ModelError, match="cannot be reached"):
        models.expect("owner/narrow", None, "train.model", here=True)


def test_a_model_without_that_file_is_there(hub: None) -> None:
    models.expect("owner/other", None, "embed.model", here=True)


def test_a_folder_needs_no_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    models.expect(str(tmp_path), None, "train.model", here=True)
    models.expect("sandbox://base", None, "train.model", here=True)


def test_notes_of_a_download_are_no_part_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = models.identity(str(tmp_path), None)
    for hidden in (".cache/huggingface/download/config.json.metadata", ".git/HEAD"):
        (tmp_path / hidden).parent.mkdir(parents=True)
        (tmp_path / hidden).write_text("1795861234.5")
    assert models.identity(str(tmp_path), None) == before
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert models.identity(str(tmp_path), None) != before


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


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pickled", "pytorch_model.bin"),
        ("sharded", "0_Transformer/pytorch_model.bin.index.json"),
        ("both", None),
        ("dense", None),
        ("static", None),
    ],
)
@pytest.mark.parametrize("revision", [None, "v2"])
def test_pickled_weights_are_seen_in_the_hub_s_list(
    hub: None, name: str, file: str | None, revision: str | None
) -> None:
    message = rf"embed\.model owner/{name}: .* pickled, in {re.escape(file or '')}: set embed\.pickled_weights to true"
    with nullcontext() if file is None else pytest.raises(ModelError, match=message):
        models.expect_safetensors(f"owner/{name}", revision, "embed.model", KNOB)


def test_pickled_weights_are_seen_in_the_cache_of_a_machine_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--seen-before"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc" / "config.json").write_text("{}")
    models.expect_safetensors("owner/seen-before", None, "embed.model", KNOB)  # its weights are not known
    (place / "snapshots" / "abc" / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"pickled, in pytorch_model\.bin"):
        models.expect_safetensors("owner/seen-before", None, "embed.model", KNOB)
    models.expect_safetensors("owner/never-seen", None, "embed.model", KNOB)
    models.expect_safetensors("no name/of a/model", None, "embed.model", KNOB)


def test_pickled_weights_are_seen_in_a_folder(tmp_path: Path) -> None:
    for file in ("config.json", "pytorch_model.bin"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=r"pickled, in pytorch_model\.bin"):
        models.expect_safetensors(str(tmp_path), None, "embed.model", KNOB)
    (tmp_path / "model.safetensors").touch()
    models.expect_safetensors(str(tmp_path), None, "embed.model", KNOB)


@pytest.fixture
def url(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in a bucket, and for this machine a cache of its own, which is empty."""
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path / "cache"))
    place = f"s3://{s3_bucket}/{uuid.uuid4().hex}/base"
    storage.upload_folder(Path(models.resolve("sandbox://base")), place)
    return place


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been downloaded."""
    found: list[str] = []
    download = storage.local_folder

    def counted(place: str, *options: Any) -> Path:
        found.append(place)
        return download(place, *options)

    monkeypatch.setattr(storage, "local_folder", counted)
    return found


def content(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_a_model_on_s3_is_downloaded_once(url: str, downloads: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(models.resolve, [url, f"{url}/"])
    assert first == second == models.resolve(url)
    assert len(downloads) == 1 and content(first) == content(models.resolve("sandbox://base"))


def test_a_model_s_identity_on_s3_is_that_of_its_objects(url: str, downloads: list[str]) -> None:
    whole, words = models.identity(url, None), models.identity(url, None, weights=False)
    assert whole == models.identity(f"{url}/", "main") != words == models.identity(url, None, weights=False)
    before = models.resolve(url)
    storage.write_bytes(f"{url}/model.safetensors", b"other weights")
    assert models.identity(url, None) != whole and models.identity(url, None, weights=False) == words
    after = models.resolve(url)
    assert after != before and (Path(after) / "model.safetensors").read_bytes() == b"other weights"
    storage.write_bytes(f"{url}/tokenizer.json", b"other words")
    assert models.identity(url, None, weights=False) != words and len(downloads) == 2


def test_of_a_model_on_s3_what_holds_no_weights_is_had_without_them(url: str, downloads: list[str]) -> None:
    assert models.positions(url, None) == models.positions("sandbox://base", None) == 512
    assert downloads == [], "one file is read where it is"
    small = content(models.resolve("sandbox://base"))
    small = {name: data for name, data in small.items() if not name.endswith(".safetensors")}
    assert content(models.resolve(url, weights=False)) == small


def test_a_model_that_changes_while_it_is_downloaded_is_not_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    download = storage.local_folder

    def slow(place: str, *options: Any) -> Path:
        found = download(place, *options)
        storage.write_bytes(f"{url}/model.safetensors", b"other weights")
        return found

    monkeypatch.setattr(storage, "local_folder", slow)
    with pytest.raises(ModelError, match=rf"{url}: has changed while it was downloaded; run the same command again"):
        models.resolve(url)
    assert [one for one in node_folder.cache().iterdir() if one.is_dir()] == []


def test_a_prefix_without_a_model_is_named_and_not_downloaded(s3_bucket: str, downloads: list[str]) -> None:
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/model"
    message = rf"{url}: no config\.json or modules\.json in {url}: is the model folder complete"
    for look in (models.expect, models.identity, models.resolve):
        arguments: list[Any] = [url] if look is models.resolve else [url, None]
        arguments += ["train.model", False] if look is models.expect else []
        with pytest.raises(ModelError, match=message):
            look(*arguments)
        storage.write_bytes(f"{url}/model.safetensors", b"weights")
    storage.write_bytes(f"{url}/config.json", b"{}")
    models.expect(url, None, "train.model", here=False)
    assert downloads == []
