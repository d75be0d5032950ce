"""Tests of ray_pipeline.runtime on the session's Ray."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data

from ray_pipeline import claim, node_types, pipeline, preflight, runtime
from ray_pipeline.artifact import Counts
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Recipe, Runtime
from ray_pipeline.stage import Outcome

pytestmark = pytest.mark.usefixtures("ray_up")


def test_starting_twice_is_starting_once() -> None:
    before = ray.get_runtime_context().get_job_id()
    runtime.start(Runtime(cpus=1))
    assert ray.get_runtime_context().get_job_id() == before
    assert ray.cluster_resources()["CPU"] == 2


def test_workers_know_the_endpoints_and_secrets_are_not_handed_on() -> None:
    @ray.remote(num_cpus=0.1)
    def environment() -> dict[str, str]:
        import os

        return dict(os.environ)

    there = ray.get(environment.remote())
    assert there["AWS_ENDPOINT_URL"] == os.environ["AWS_ENDPOINT_URL"]
    assert there["TOKENIZERS_PARALLELISM"] == "false"
    told: Any = ray.get_runtime_context().runtime_env
    assert "AWS_ENDPOINT_URL" in told["env_vars"]
    assert not [name for name in told["env_vars"] if "KEY" in name or "SECRET" in name or "TOKEN" in name.split("_")]


def test_an_address_with_a_password_is_not_handed_on() -> None:
    variables = {"GOOGLE_GEMINI_BASE_URL": "https://me:secret@proxy", "AWS_REGION": "here"}
    assert runtime._handed_on(variables) == {"AWS_REGION": "here"}
    open_ones = {"GOOGLE_GEMINI_BASE_URL": "https://proxy/v"}
    assert runtime._handed_on(open_ones) == open_ones


def test_the_user_s_word_on_the_allocator_counts() -> None:
    assert runtime._allocation({}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    own = {"PYTORCH_ALLOC_CONF": "backend:native"}
    assert runtime._allocation(own) == own
    assert runtime._allocation({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}) == {}


def test_ray_data_loses_no_block_and_shows_no_bars() -> None:
    context = ray.data.DataContext.get_current()
    assert context.max_errored_blocks == 0
    assert context.enable_progress_bars is False


def test_a_local_ray_has_no_dashboard_and_asks_for_a_token() -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode

    assert not ray._private.worker.global_worker.node.webui_url
    if "RAY_AUTH_MODE" not in os.environ:
        assert get_authentication_mode() == AuthenticationMode.TOKEN


@pytest.mark.parametrize(
    ("wanted", "cpus_each", "count"), [(None, 1, 2), (None, 0.5, 4), (None, 2, 1), (None, 16, 1), (3, 1, 3), (1, 1, 1)]
)
def test_worker_count(wanted: int | None, cpus_each: float, count: int) -> None:
    assert runtime.worker_count(wanted, {"CPU": cpus_each}) == count


@pytest.mark.parametrize(
    ("each", "count"),
    [
        ({"CPU": 1, "GPU": 1}, 8),
        ({"CPU": 0.5, "GPU": 0.3}, 24),
        ({"CPU": 1, "GPU": 0.3}, 16),
        ({"CPU": 4, "GPU": 1}, 4),
        ({"CPU": 1, "GPU": 3}, 2),
        ({"CPU": 0.1}, 160),
        ({"CPU": 1, "GPU": 1, "accelerator_type:L4": 0.001}, 8),
        ({"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}, 0),
    ],
)
def test_places_on_a_node(each: dict[str, float], count: int) -> None:
    assert runtime.places({"CPU": 16.0, "GPU": 8.0, "accelerator_type:L4": 1.0}, each) == count


def test_workers_fit_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 32.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 4.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert runtime.worker_count(None, {"CPU": 2, "GPU": 1}) == 1
    assert runtime.worker_count(None, {"CPU": 1, "GPU": 1}) == 2
    assert runtime.worker_count(None, {"CPU": 3}) == 11
    assert runtime.worker_count(None, {"CPU": 1, "GPU": 16}) == 1


def test_gpus_that_are_not_there_are_a_problem_rather_than_a_wait() -> None:
    there = int(ray.cluster_resources().get("GPU", 0))
    runtime.check_room(Runtime(), 2)
    with pytest.raises(PipelineError, match=r"runtime\.gpus_per_worker 1 .* lower runtime\.gpus_per_worker"):
        runtime.check_room(Runtime(gpus_per_worker=1), there + 1)
    with pytest.raises(PipelineError, match=r"runtime\.cpus_per_worker 2 for 2 .* needs 4 CPUs"):
        runtime.check_room(Runtime(cpus_per_worker=2), 2)


def test_nodes_that_never_come_are_waited_for_as_long_as_the_recipe_says() -> None:
    there = int(ray.cluster_resources().get("GPU", 0))
    runtime.check_room(Runtime(address="auto"), 2)
    with pytest.raises(PipelineError, match=r"no room for 9 × CPU 1, GPU 1 in 1 s \(runtime\.wait_seconds\)"):
        runtime.check_room(Runtime(gpus_per_worker=1, address="auto", wait_seconds=1), there + 9)
    runtime.check_room(Runtime(address="auto"), 2)  # what was held is let go of


L40S = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}


@pytest.mark.parametrize(
    ("changes", "each", "told"),
    [
        ({"gpus_per_worker": 2}, None, r"runtime\.gpus_per_worker 2 \(known nodes have at most 1\): correct"),
        ({"accelerator_type": "L40Ss"}, None, r"runtime\.accelerator_type L40Ss \(known are L40S\): correct"),
        ({"cpus_per_worker": 16}, None, r"runtime\.cpus_per_worker 16 \(known nodes have at most 8\): correct"),
        ({}, {"CPU": 0.5, "of_none": 1.0}, r"runtime\.translate_resource of_none 1 \(known nodes have at most 0\)"),
        ({}, {"CPU": 9.0}, r"CPU 9 \(known nodes have at most 8\)"),
    ],
)
def test_what_no_node_of_a_cluster_can_hold_is_refused_at_once(
    changes: dict[str, Any], each: dict[str, float] | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_types, "startable", lambda: [L40S, {"CPU": 4.0}])
    wanted = Runtime(**{"address": "auto", "gpus_per_worker": 1, "accelerator_type": "L40S"} | changes)
    monkeypatch.setattr(runtime, "_up", list)
    with pytest.raises(PipelineError, match=rf"no node .*, and its autoscaler has none to start: {told}"):
        runtime.check_limits(wanted, 1, each)


@pytest.mark.parametrize("kinds", [[L40S], None])
def test_what_an_autoscaler_may_start_is_neither_refused_nor_asked_for(
    kinds: list[dict[str, float]] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*_: object) -> None:
        raise AssertionError("a node would be started for it")

    monkeypatch.setattr(node_types, "startable", lambda: kinds)
    monkeypatch.setattr(ray.util, "placement_group", ask)
    wanted = Runtime(address="auto", gpus_per_worker=1, accelerator_type="L40S")
    runtime.check_limits(wanted, int(ray.cluster_resources().get("GPU", 0)) + 1)
    assert "no room yet for" in capsys.readouterr().err


def test_more_workers_than_nodes_may_come_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_types, "startable", lambda: [L40S])
    monkeypatch.setattr(node_types, "most", lambda places: 4 * places(L40S))
    wanted = Runtime(address="auto", gpus_per_worker=1, accelerator_type="L40S")
    runtime.check_limits(wanted, 4)
    with pytest.raises(
        PipelineError, match=r"room for 4 at a time of 8 × CPU 1, GPU 1.*lower train\.workers.*maxReplicas"
    ):
        runtime.check_limits(wanted, 8)


def test_nodes_that_are_started_by_hand_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node_types, "startable", lambda: ())
    wanted = Runtime(address="auto", gpus_per_worker=99, wait_seconds=0.5)
    with pytest.raises(PipelineError, match=r"none has come in 0\.5 s \(runtime\.wait_seconds\): .*gpus_per_worker 99"):
        runtime.check_limits(wanted)
    assert "waiting up to 0.5 s for a node with room for 1 × CPU 1, GPU 99" in capsys.readouterr().err
    up: Any = iter([[{"Alive": True, "Resources": {"CPU": 1.0}}], *[[{"Alive": True, "Resources": L40S}]] * 9])
    monkeypatch.setattr(ray, "nodes", lambda: next(up))
    runtime.check_limits(wanted.model_copy(update={"gpus_per_worker": 1}))


def test_a_type_that_this_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: L40S)
    told = r"^runtime\.accelerator_type L40Ss \(known are L40S\): correct it, leave it out, or run on a cluster$"
    with pytest.raises(PipelineError, match=told):
        runtime.check_room(Runtime(gpus_per_worker=1, accelerator_type="L40Ss"))
    runtime.check_room(Runtime(gpus_per_worker=1, accelerator_type="L40S"))


def test_before_any_work_the_room_of_all_stages_is_looked_at(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, float]] = []

    def check_limits(width: Runtime, workers: int = 1, each: dict[str, float] | None = None) -> None:
        asked.append(dict(each or {"workers": workers}))

    monkeypatch.setattr(runtime, "check_limits", check_limits)
    changes = {"translate__languages": ["de"], "runtime__address": "auto", "runtime__translate_resource": "fanout"}
    recipe = make_recipe(train__workers=2, **changes)
    preflight.expect_room(recipe, {"ingest", "translate", "train", "score"})
    assert asked == [{"workers": 2}, {"CPU": 0.5, "fanout": 1.0}]
    preflight.expect_room(recipe, {"score"})
    assert asked[2:] == [{"workers": 1}]
    preflight.expect_room(recipe, {"ingest", "embed", "mix", "evaluate"})
    assert len(asked) == 3, "without negatives there is nothing to embed"
    preflight.expect_room(recipe, {"out_of_fold"})
    assert len(asked) == 3, "without folds there is nothing to train"
    preflight.expect_room(make_recipe(self_validation__folds=2, train__workers=2), {"out_of_fold", "self_validation"})
    assert asked[3:] == [{"workers": 2}]


def test_only_stages_that_begin_with_work_for_any_cpu_ask_for_one(
    tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(runtime, "check_room", lambda *_: asked.append(stage.name))
    for stage in pipeline.STAGES:
        idle = replace(stage, run=lambda context: Outcome(Counts()))
        step = pipeline.Step(idle, {}, {}, str(tmp_path / stage.name), None)
        with claim.held(str(tmp_path / "claims" / stage.name)) as claimed:
            pipeline._made(step, make_recipe(), str(tmp_path), {}, claimed)
    assert set(pipeline.STAGE_NAMES) - set(asked) == {"audit", "train", "score", "evaluate"}


def test_a_pool_asks_for_what_one_of_its_workers_does() -> None:
    chosen = Runtime(gpus_per_worker=0.5, cpus_per_worker=2, accelerator_type="L4")
    assert runtime.model_pool(chosen, 3) == {
        "workers": 3, "num_cpus": 2, "num_gpus": 0.5, "resources": {"accelerator_type:L4": 0.001},
    }  # fmt: skip


def test_a_type_of_gpu_is_asked_for_with_the_gpu_only() -> None:
    chosen = Runtime(gpus_per_worker=1, accelerator_type="L4")
    assert runtime.model_worker(chosen) == {"CPU": 1, "GPU": 1, "accelerator_type:L4": 0.001}
    assert runtime.gpu_placement(Runtime(accelerator_type="L4")) == {}
    assert runtime.model_worker(Runtime(cpus_per_worker=2)) == {"CPU": 2}
