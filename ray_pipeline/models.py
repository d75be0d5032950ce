"""Where models come from: the Hugging Face hub, a local folder, an `s3://` prefix, `sandbox://…`; their identity."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ray_pipeline import hub, node_folder, rawfiles, s3, storage
from ray_pipeline.errors import ModelError
from ray_pipeline.text import stable_id

SANDBOX = "sandbox://"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
"""Endings of files that hold weights."""
PICKLED = {"pytorch_model.bin", "pytorch_model.bin.index.json"}
"""Files that hold weights as torch pickles them, or name such files."""
TRANSFORMER = "_Transformer"
"""How sentence-transformers ends the name of such a module's folder, if it is not the model's own."""
HUB_SECONDS = 10.0
"""How long the hub has to say which files a model has."""


def identity(name: str, revision: str | None, weights: bool = True) -> str:
    """What an artifact's identity knows of a model: a hub name with its revision, or a folder's content.

    Without `weights`, files that hold them do not count: it is the tokenizer that matters.
    """
    files = _files(name, weights)  # an incomplete folder is found here, while the run is planned
    return f"{name}@{revision or 'main'}" if files is None else _content(files, rawfiles.digest)


def resolve(name: str, weights: bool = True) -> str:
    """What `from_pretrained` takes: a hub name, or the path of a folder that is there.

    Of an `s3://` prefix it is a copy, which a node makes once of the same content; without `weights`, of all other
    files. Raises ModelError for a folder that is missing or holds no model.
    """
    files = _files(name, weights)
    if files is None or not s3.is_s3(name):
        return _folder(name) or name
    return _downloaded(name, weights, _content(files, storage.hash_once))


def _downloaded(name: str, weights: bool, content: str) -> str:
    """The copy of a prefix that has this content; raises ModelError where that has changed meanwhile."""

    def download(into: Path) -> None:
        storage.local_folder(name, into, lambda file: weights or not _holds_weights(file))
        if _content(_files(name, weights) or {}, storage.hash_once) != content:
            raise ModelError(f"{name}: has changed while it was downloaded; run the same command again")

    return str(node_folder.kept(f"{storage.name(name)}-{stable_id(content)}", download))


def placed(name: str) -> str:
    """The name, of a local folder its full path: Ray Train's workers stand in other folders than the command."""
    found = Path(name).expanduser()
    return os.path.abspath(found) if found.is_dir() else name


def expect(name: str, revision: str | None, field: str, here: bool) -> None:
    """Raise ModelError, before anything is spent, for a model that the Hugging Face hub does not know or give.

    So it does for a folder that holds none. A hub that cannot be reached matters only where the model is loaded `here`,
    and is not in this machine's cache.
    """
    if _files(name) is not None:
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
        if hub.refuses_token(error):
            raise _token_refused(field, name) from error
        if here:
            raise ModelError(
                f"{field} {name}: is not on this machine, and the Hugging Face hub cannot be reached: check the "
                "network, or name the folder of a model"
            ) from error
    except errors.EntryNotFoundError:  # a model that has no such file
        return
    except errors.HfHubHTTPError as error:
        if not hub.refuses_token(error):
            raise
        raise _token_refused(field, name) from error


def _token_refused(field: str, name: str) -> ModelError:
    return ModelError(
        f"{field} {name}: the Hugging Face hub refuses the token (HF_TOKEN, or that of `hf auth login`): renew it, or "
        "let it read this model (one with fine-grained permissions: gated repositories), on every node; do without it "
        "if the model is a public one"
    )


def expect_safetensors(name: str, revision: str | None, field: str, knob: str) -> None:
    """Raise ModelError, before anything is spent, for a model whose weights are in no safetensors, but pickled.

    `knob` is the recipe's field by which they are read all the same. Where the model's files cannot be looked at,
    nothing is raised.
    """
    files = _files(name)
    pickled = _pickled(_hub_files(name, revision) if files is None else files)
    if pickled is not None:
        raise ModelError(
            f"{field} {name}: its weights are not in safetensors, but pickled, in {pickled}: set {knob} to true, "
            "which reads tensors from there and runs no code, or name another model"
        )


def weights_options(pickled: bool) -> dict[str, Any]:
    """How `from_pretrained` is to read weights: from safetensors, or, if `pickled`, where there are none, from
    `pytorch_model.bin`, by torch's loader that takes tensors only and runs no code.
    """
    return {"use_safetensors": None if pickled else True, "weights_only": True}


def configuration(name: str, revision: str | None) -> dict[str, Any] | None:
    """What a model's `config.json` says, of a hub model's as this machine's cache has it; null: it is not there."""
    from huggingface_hub import try_to_load_from_cache

    files = _files(name)
    cached = try_to_load_from_cache(name, "config.json", revision=revision) if files is None else None
    found = cached if files is None else files.get("config.json")
    return dict(json.loads(storage.read_bytes(found))) if isinstance(found, str) else None


def positions(name: str, revision: str | None) -> int | None:
    """The most tokens that a model reads, by its configuration on this machine; null: not known, or no limit."""
    config = configuration(name, revision)
    if config is None:
        return None
    text = config.get("text_config") or config
    most = text.get("max_position_embeddings")
    if most is None or text.get("position_biased_input") is False:  # DeBERTa-v3 has relative positions only
        return None
    offset = text.get("pad_token_id", 1) + 1 if "roberta" in text.get("model_type", "") else 0
    return int(most) - offset


def _folder(name: str) -> str | None:
    """The path or url of a model's folder; null for a hub model. Raises ModelError for one that is missing."""
    if s3.is_s3(name):
        return name.rstrip("/")
    if name.startswith(SANDBOX):
        from ray_pipeline.sandbox import models

        return str(models.folder(name.removeprefix(SANDBOX)))
    path = Path(name).expanduser()
    if path.is_dir():  # as the libraries do: a folder of that name goes before the hub
        return str(path.resolve())
    if name.startswith(("/", "./", "../", "~")):
        raise ModelError(f"{name}: no such folder; name a model folder or a hub model")
    return None


def _files(name: str, weights: bool = True) -> dict[str, str] | None:
    """Paths or urls of a model folder's files, with weights or without, by their places in it; null for a hub model.

    Raises ModelError for a folder that is missing or holds no model.
    """
    folder = _folder(name)
    if folder is None:
        return None
    there = [file for file in storage.list_files(folder) if storage.is_remote(file) or os.path.isfile(file)]
    found = {file.removeprefix(f"{folder}/"): file for file in there}
    found = {place: file for place, file in found.items() if not _is_hidden(place)}
    if not {"config.json", "modules.json"} & found.keys():
        raise ModelError(f"{name}: no config.json or modules.json in {folder}: is the model folder complete?")
    return {place: file for place, file in found.items() if weights or not _holds_weights(place)}


def _is_hidden(place: str) -> bool:
    """Whether a file is no part of the model: in `.git`, or in `.cache`, where `hf download` notes its times."""
    return any(part.startswith(".") for part in place.split("/"))


def _holds_weights(file: str) -> bool:
    return file.endswith((*WEIGHTS, ".index.json"))


def _content(files: Mapping[str, str], look: Callable[[str], str]) -> str:
    """Hashes of a folder's files, as `look` gives them, by their places in it; of an object's ETag and size."""
    marks = storage.for_each(look, list(files.values()))
    return json.dumps(dict(zip(files, marks, strict=True)), sort_keys=True)


def _hub_files(name: str, revision: str | None) -> list[str]:
    """The files of a hub model; where the hub does not answer, those of them that this machine's cache has."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        return _listed(name, revision)
    except errors.HFValidationError:  # no name of a hub model
        return []
    except (errors.HTTPError, OSError):
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        folder = Path(config).parent if isinstance(config, str) else None
        return [] if folder is None else [str(file.relative_to(folder)) for file in folder.rglob("*")]


@cache
def _listed(name: str, revision: str | None) -> list[str]:
    """The files of a model, as the hub has them when it is asked first."""
    from huggingface_hub import HfApi

    found = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    return [file.rfilename for file in found.siblings or []]


def _pickled(files: Iterable[str]) -> str | None:
    """The file of pickled weights that a model's transformer would have to be read from; null: from another kind."""
    folders: dict[str, set[str]] = defaultdict(set)
    for file in files:
        folder, _, last = file.rpartition("/")
        folders[folder].add(last)
    for folder, names in folders.items():
        pickled = names & PICKLED if "config.json" in names and (not folder or folder.endswith(TRANSFORMER)) else set()
        if pickled and not any(last.endswith(".safetensors") for last in names):
            return f"{folder}/{min(pickled)}".lstrip("/")
    return None
