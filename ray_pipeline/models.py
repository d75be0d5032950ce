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
    return json.dumps({str(file.relative_to(path)): storage.hash_once(str(file)) for file in files}, sort_keys=True)


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


def placed(name: str) -> str:
    """The name, of a local folder its full path: Ray Train's workers stand in other folders than the command."""
    found = Path(name).expanduser()
    return os.path.abspath(found) if found.is_dir() else name


def expect(name: str, revision: str | None, field: str, here: bool) -> None:
    """Raise ModelError, before anything is spent, for a model that the Hugging Face hub does not know or give.

    A hub that cannot be reached matters only where the model is loaded `here`, and is not in this machine's cache.
    """
    if _folder(name) is not None:
        return
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        hf_hub_download(name, "config.json", revision=revision)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{field} {name}: is a gated model: accept its licence on the model's page, and set HF_TOKEN in the "
            "environment (of every node, on a cluster)"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        version = f", revision {revision}" if revision else ""
        raise ModelError(
            f"{field} {name}{version}: there is no such folder here, and the Hugging Face hub knows no such model: "
            "check the name, or set HF_TOKEN if it is a private one"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if here:
            raise ModelError(
                f"{field} {name}: is not on this machine, and the Hugging Face hub cannot be reached: check the "
                "network, or name the folder of a model"
            ) from error
    except errors.EntryNotFoundError:  # a model that has no such file
        return


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


def positions(name: str, revision: str | None) -> int | None:
    """The most tokens that a model reads, by its configuration on this machine; null: not known, or no limit."""
    from huggingface_hub import try_to_load_from_cache

    folder = _folder(name)
    found = folder / "config.json" if folder else try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(found, str | Path) or not Path(found).is_file():
        return None
    config = json.loads(Path(found).read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    most = text.get("max_position_embeddings")
    if most is None or text.get("position_biased_input") is False:  # DeBERTa-v3 has relative positions only
        return None
    offset = text.get("pad_token_id", 1) + 1 if "roberta" in text.get("model_type", "") else 0
    return int(most) - offset
