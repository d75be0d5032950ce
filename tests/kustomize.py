"""What `kubectl kustomize` makes of our overlays, where there is no kubectl: no more of Kustomize than they use."""

import re
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]


def render(folder: Path) -> list[Resource]:
    """The resources of a folder with a kustomization.yaml; ConfigMaps last."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[Resource] = []
    for name in rules["resources"]:
        found += render(folder / name) if (folder / name).is_dir() else _resources(folder / name, rules["images"])
    found += [_config_map(folder, one) for one in rules.get("configMapGenerator", ())]
    for patch in rules.get("patches", ()):
        for one in found:
            if patch["target"].items() <= {"kind": one["kind"], "name": one["metadata"]["name"]}.items():
                for step in yaml.safe_load(patch["patch"]):
                    _apply(one, step)
    return found


def _resources(file: Path, images: list[dict[str, str]]) -> list[Resource]:
    text = file.read_text()
    for image in images:
        chosen = f"image: {image['newName']}:{image['newTag']}"
        text = re.sub(rf"image: {image['name']}$", chosen, text, flags=re.MULTILINE)
    return list(yaml.safe_load_all(text))


def _config_map(folder: Path, rule: dict[str, Any]) -> Resource:
    data = {name: (folder / name).read_text() for name in rule.get("files", ())}
    for name in rule.get("envs", ()):
        lines = [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("#")]
        data |= dict(line.split("=", 1) for line in lines)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": rule["name"]}, "data": data}


def _apply(resource: Resource, step: dict[str, Any]) -> None:
    """One step of a JSON patch; nothing is added to a list."""
    place: Any = resource
    *way, last = (int(key) if key.isdigit() else key for key in step["path"].strip("/").split("/"))
    for key in way:
        place = place[key]
    if step["op"] == "remove":
        del place[last]
    else:
        assert step["op"] == "add" or place[last] is not None, step
        place[last] = step["value"]
