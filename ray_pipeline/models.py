"""Model names: a Hugging Face hub name, a local folder, or `sandbox://…`, and the identity of what they stand for."""

import json
import os
from pathlib import Path

from ray_pipeline import storage
from ray_pipeline.errors import ModelError

SANDBOX = "sandbox://"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
"""Endings of files that hold weights."""


def identity(name: str, revision: str | None, weights: bool = True) -> str:
    """What an artifact's identity knows of a model: a hub name with its revision, or a folder's content.

    Without `weights`, files that hold them do not count: it is the tokenizer that matters.
    """
    resolve(name)  # an incomplete folder is found here, while the run is planned
    path = _folder(name)
    if path is None:
        return f"{name}@{revision or 'main'}"
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not weights:
        files = [file for file in files if file.suffix not in WEIGHTS and not file.name.endswith(".index.json")]
    return json.dumps({str(file.relative_to(path)): _file_hash(file) for file in files}, sort_keys=True)


def resolve(name: str) -> str:
    """What `from_pretrained` takes: a hub name, or the path of a folder that is there.

    Raises ModelError for a folder that is missing or holds no model.
    """
    path = _folder(name)
    if path is None:
        return name
    if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise ModelError(f"{name}: no config.json or modules.json in {path}: is the model folder complete?")
    return str(path)


def _folder(name: str) -> Path | None:
    if name.startswith(SANDBOX):
        from ray_pipeline.sandbox import models

        return models.folder(name.removeprefix(SANDBOX))
    path = Path(name).expanduser()
    if path.is_dir():  # as the libraries do: a folder of that name goes before the hub
        return path.resolve()
    if name.startswith(("/", "./", "../", "~")):
        raise ModelError(f"{name}: no such folder; name a model folder or a hub model")
    return None


_hashes: dict[tuple[str, int, int], str] = {}


def _file_hash(file: Path) -> str:
    status = os.stat(file)
    key = (str(file), status.st_size, status.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = storage.content_hash(str(file))
    return _hashes[key]
