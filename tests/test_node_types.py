"""Tests of ray_pipeline.node_types: the settings of our own clusters, and the session's Ray, started by hand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_pipeline import node_types

from . import kustomize

CLUSTER = Path(__file__).parents[1] / "cluster"
CPU, GPU = {"CPU": 16, "fanout": 4}, {"CPU": 8, "GPU": 1, "accelerator_type:L40S": 1}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On no cluster's head."""
    for name in ("RAY_CLUSTER_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("LAUNCHED", "NAMESPACE"):
        monkeypatch.setattr(node_types, name, tmp_path / name)


def test_of_a_cluster_that_ray_has_launched(tmp_path: Path) -> None:
    (tmp_path / "LAUNCHED").write_bytes((CLUSTER / "aws.yaml").read_bytes())
    assert node_types.startable() == [CPU, GPU], "and no head"


@pytest.mark.parametrize(("needed", "most"), [("GPU", 4), ("CPU", 4 * 16 + 4 * 8), ("none", 0)])
def test_how_many_workers_such_a_cluster_may_come_to_hold(tmp_path: Path, needed: str, most: int) -> None:
    (tmp_path / "LAUNCHED").write_bytes((CLUSTER / "aws.yaml").read_bytes())
    assert node_types.most(lambda kind: int(kind.get(needed, 0))) == most


def test_a_limit_of_all_nodes_together(tmp_path: Path) -> None:
    settings = yaml.safe_load((CLUSTER / "aws.yaml").read_text()) | {"max_workers": 5}
    (tmp_path / "LAUNCHED").write_text(yaml.safe_dump(settings))
    assert node_types.most(lambda kind: int(kind["CPU"])) == 4 * 16 + 8


def test_of_a_cluster_in_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    (job,) = (one for one in kustomize.render(CLUSTER / "kuberay" / "base") if one["kind"] == "RayJob")
    asked: list[str] = []

    def get(client: Any, path: str) -> dict[str, Any]:
        asked.append(f"{client._namespace}/{path}")
        return {"metadata": {"name": "mine", "namespace": "here"}, "spec": job["spec"]["rayClusterSpec"]}

    monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "mine")
    assert node_types.startable() is None, "who is told no namespace is no pod"
    (tmp_path / "NAMESPACE").write_text("here\n")
    found = node_types.startable()
    assert found is not None and asked == ["here/rayclusters/mine"]
    assert [{name: one[name] for name in one if name != "memory"} for one in found] == [CPU | {"CPU": 14}, GPU]
    assert node_types.most(lambda kind: int(kind.get("GPU", 0))) == 4


def test_where_kubernetes_does_not_answer_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CLUSTER_NAME", "mine")
    (tmp_path / "NAMESPACE").write_text("here")  # but no token
    assert node_types.startable() is None
    monkeypatch.delenv("RAY_CLUSTER_NAME")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert node_types.startable() is None


@pytest.mark.parametrize("change", [{"resources": {}}, {"min_workers": 1}])
def test_nodes_that_may_bring_more_than_is_told(change: dict[str, Any]) -> None:
    settings = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    settings["available_node_types"]["gpu"] |= change
    assert node_types.resources(settings) is None


@pytest.mark.usefixtures("ray_up")
def test_nodes_that_are_started_by_hand() -> None:
    assert node_types.startable() == () and node_types.most(len) is None
