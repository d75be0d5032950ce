"""Why a stage is to do though it was run before: in what it differs from the nearest artifact that it has made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray_pipeline import artifact, storage
from ray_pipeline.artifact import Manifest
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.pipeline import Step

NEWEST = 20
"""Manifests of a stage that are looked at."""
SHOWN = 4
"""Differences that are named; the others are counted."""


def told(step: Step) -> str | None:
    """Say why a stage cannot be taken from an earlier run; null if it is finished, or has made nothing yet."""
    if step.finished is not None:
        return None
    config = json.loads(json.dumps(step.config))
    before = _newest(step.folder.rsplit("/", 1)[0])
    if any(one.fingerprint == step.fingerprint for one in before):
        return "was made with a training that is made again"
    found = [(differing(one, step.stage.schema_version, config, step.inputs), one.fingerprint) for one in before]
    if not found:
        return None
    names, fingerprint = min(found, key=lambda one: len(one[0]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"differs from {fingerprint} in {', '.join(names[:SHOWN])}{more}"


def differing(made: Manifest, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """What of an identity is not as it was, as `config.columns.id`, `its input split` or `schema 4 -> 5`."""
    names = [f"config.{name}" for name in _unequal(_flat(made.config), _flat(config))]
    names += [f"its input {name}" for name in _unequal(made.inputs, inputs)]
    before = made.extra.get("schema_version")
    if before != version and (before is not None or not names):
        names.append(f"schema {before or 'unknown'} -> {version}")
    return names


def _unequal(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    absent = object()
    return [name for name in {**before, **now} if before.get(name, absent) != now.get(name, absent)]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        below = _flat(value) if isinstance(value, Mapping) and value else None
        found |= {key: value} if below is None else {f"{key}.{name}": one for name, one in below.items()}
    return found


def _newest(stage: str) -> list[Manifest]:
    """The newest manifests of a stage, the newest first; unreadable ones are passed over."""
    folders = storage.folders(stage)
    written = storage.for_each(_written, folders)
    order = sorted(range(len(folders)), key=lambda i: written[i], reverse=True)
    found = storage.for_each(_manifest, [folders[i] for i in order[:NEWEST]])
    return [one for one in found if one is not None]


def _written(folder: str) -> float:
    try:
        return storage.modified(storage.join(folder, artifact.MANIFEST))
    except FileNotFoundError:
        return 0.0


def _manifest(folder: str) -> Manifest | None:
    try:
        found = artifact.load(folder)
    except CorruptArtifactError:
        return None
    return found.manifest if found is not None else None
