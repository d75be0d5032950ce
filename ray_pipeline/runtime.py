"""Where Ray is started and its pools are sized: the one home of cluster knobs."""

import gc
import logging
import os
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ray_pipeline import logs, node_types, s3
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Runtime
from ray_pipeline.recipe.section import holds_credentials

WORKER_ENVIRONMENT = (*s3.VARIABLES, "GOOGLE_GEMINI_BASE_URL", "HF_HOME")
"""Handed from the driver to every worker. Secrets are not: a cluster's nodes have them in their own environment."""
ALLOCATION = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""How torch takes a GPU's memory unless the driver's environment says otherwise: in segments that can grow, so that
passes of ever-changing shapes leave fewer gaps. Its effect is not measured."""
ANSWER_SECONDS = 5.0
"""In which a cluster's head has to answer; ray.init alone would try a dead address for most of a minute."""
NOTICE_SECONDS = 3.0
"""After which a job says that it waits for nodes."""
ROOM_SECONDS = 2.0
"""In which Ray places a worker that there is room for."""
ROUNDING = 1e-9
"""A worker takes 0.1 of a CPU ten times."""

TYPE = "accelerator_type:"
"""Begins Ray's name of the resource by which a node tells the type of its GPUs."""
NONE_TO_START = "its autoscaler has none to start"
WAIT = "ray_pipeline.wait_seconds"
"""Under this name, Ray Data's context holds `runtime.wait_seconds`."""


def start(runtime: Runtime) -> None:
    """Start Ray here, or join the cluster of the job; nothing happens if Ray is up. Takes about 3 to 15 seconds.

    Raises PipelineError if no cluster answers at `runtime.address` within seconds, or if it cannot be joined.
    """
    import ray

    if not ray.is_initialized():
        environment = _handed_on(os.environ)
        environment |= {"TOKENIZERS_PARALLELISM": "false", s3.REACHED_VARIABLE: "1"} | _allocation(os.environ)
        options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "logging_level": logging.ERROR}
        if runtime.address == "local":
            _start_here(runtime, options)
        else:
            _join(runtime.address, options)
    _set_up_data(runtime)


def _handed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """What workers are told; an address with a password in it, which Ray would show, is left to the nodes too."""
    there = {name: variables[name] for name in WORKER_ENVIRONMENT if name in variables}
    return {name: value for name, value in there.items() if not holds_credentials(value)}


def _allocation(variables: Mapping[str, str]) -> dict[str, str]:
    """Set with the workers' environment: by the time that their code runs, torch may have read it."""
    former = "PYTORCH_CUDA_ALLOC_CONF"
    return {} if former in variables else {name: variables.get(name, value) for name, value in ALLOCATION.items()}


def _start_here(runtime: Runtime, options: Mapping[str, Any]) -> None:
    """A Ray of this job alone, whose dashboard, the door to running code, is not even started."""
    import ray

    # A driver of its own: what its core writes to the terminal at lower levels stands in Ray's logs too.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address="local", num_cpus=runtime.cpus, include_dashboard=False, log_to_driver=False, **options)


def _join(address: str, options: Mapping[str, Any]) -> None:
    import ray
    from ray.exceptions import RayError

    _expect_answer(address)
    # The environment of `ray job submit` may name variables that are handed on here too, with the same values.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, RayError) as error:
        reason = str(error.__cause__ or error).strip()
        raise PipelineError(
            f"runtime.address {address}: the Ray cluster cannot be joined: {reason}\n"
            "Run the job on the cluster (ray job submit), with its versions of Ray and Python and its token"
        ) from error


def _expect_answer(address: str) -> None:
    """Raise PipelineError unless something that could be a Ray head answers at the address within seconds."""
    import grpc
    from ray._private import gcs_utils, services

    remedy = "run the job on the cluster (ray job submit), or set runtime.address=local to start Ray here"
    if "://" in address:
        raise PipelineError(f"runtime.address {address}: is not the address HOST:PORT of a Ray head; {remedy}")
    try:
        found = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, OSError, ValueError) as error:
        raise PipelineError(f"runtime.address {address}: no Ray cluster is known ({error}); {remedy}") from error
    channel = gcs_utils.create_gcs_channel(found)
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise PipelineError(
            f"runtime.address {address}: no Ray head answers at {found} within {ANSWER_SECONDS:g} s; "
            f"check that it runs and can be reached; {remedy}"
        ) from error
    finally:
        channel.close()


def stop() -> None:
    """Leave Ray, ending it if it was started here."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def worker_count(wanted: int | None, each: Mapping[str, float] = MappingProxyType({"CPU": 1})) -> int:
    """How many workers a stage gets: as the recipe says, else as many as the nodes that are up have room for.

    `each` are the resources of one.
    """
    return wanted or max(1, sum(places(node, each) for node in _up()))


def places(there: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers a node with these resources has room for, if it is idle."""
    return min(_times(name, there.get(name, 0), amount) for name, amount in each.items())


def _times(resource: str, there: float, each: float) -> int:
    """How often an amount of a resource is there; a part of a GPU lies on one GPU."""
    if resource == "GPU" and each < 1:
        return int(there) * int(1 / each + ROUNDING)
    return int(there / each + ROUNDING)


def gpu_placement(runtime: Runtime) -> dict[str, float]:
    """What a worker on a GPU asks for besides CPUs and GPUs: a trace of the resource that names the GPU's type."""
    if not runtime.gpus_per_worker or runtime.accelerator_type is None:
        return {}
    return {f"{TYPE}{runtime.accelerator_type}": 0.001}


def model_worker(runtime: Runtime) -> dict[str, float]:
    """The resources of a worker that holds a model: to embed, train, score or translate."""
    wanted = {"CPU": runtime.cpus_per_worker, "GPU": runtime.gpus_per_worker, **gpu_placement(runtime)}
    return {name: amount for name, amount in wanted.items() if amount}


def model_pool(runtime: Runtime, workers: int) -> dict[str, Any]:
    """How so many workers that hold a model are placed: the arguments of `shards.map_shards`."""
    return {
        "workers": workers,
        "num_cpus": runtime.cpus_per_worker,
        "num_gpus": runtime.gpus_per_worker,
        "resources": gpu_placement(runtime),
    }


def check_room(runtime: Runtime, workers: int = 1, each: Mapping[str, float] | None = None) -> None:
    """Wait until so many workers can be placed at once, by default those that hold a model.

    Raises PipelineError at once if that can never be, and on a cluster, whose nodes may still come, after
    `runtime.wait_seconds`.
    """
    wanted = dict(each or model_worker(runtime))
    if runtime.address == "local":
        check_limits(runtime, workers, wanted)
    else:
        _await_room(runtime, workers, wanted)


def check_limits(runtime: Runtime, workers: int = 1, each: Mapping[str, float] | None = None) -> None:
    """Raise PipelineError if so many workers, by default those that hold a model, can never be placed.

    Of a cluster that is known if no node could hold a single one, neither one that is up nor one that may be started;
    nodes that are started by hand are waited for, `runtime.wait_seconds`. Of nodes that may come it is only told that
    they are not there yet.
    """
    import ray

    wanted = dict(each or model_worker(runtime))
    if runtime.address == "local":
        _check_here(runtime, workers, wanted)
        return
    _await_kind(runtime, wanted)
    _expect_nodes(workers, wanted)
    there: dict[str, float] = ray.cluster_resources()
    if any(amount * workers > there.get(name, 0) for name, amount in wanted.items()):
        tell(f"the cluster has no room yet for {_described(workers, wanted)}; stages that need it will wait")


def _check_here(runtime: Runtime, workers: int, each: Mapping[str, float]) -> None:
    """Raise PipelineError if a local Ray cannot place so many workers."""
    import ray

    there: dict[str, float] = ray.cluster_resources()
    for name, amount in each.items():
        if amount * workers <= there.get(name, 0):
            continue
        if name.startswith(TYPE):
            raise PipelineError(f"{_lacking(runtime, each, [there])}: correct it, leave it out, or run on a cluster")
        field = _field(runtime, name, amount)
        raise PipelineError(
            f"{field} {amount:g} for {workers} worker(s) needs {amount * workers:g} {name}s, this machine's Ray has "
            f"{there.get(name, 0):g}: lower {field} or the number of workers, or run on a cluster"
        )


def _await_kind(runtime: Runtime, each: Mapping[str, float]) -> None:
    """Raise PipelineError if no node of a cluster could hold such a worker, even if idle; no node is started for it."""
    kinds = node_types.startable()
    if kinds is None or _holds(kinds, each):
        return
    needed, seconds = _described(1, each), 0.0 if kinds else runtime.wait_seconds
    until, told = time.monotonic() + seconds, False
    while not _holds(_up(), each):
        left = until - time.monotonic()
        if left <= 0:
            why = NONE_TO_START if kinds else f"none has come in {seconds:g} s (runtime.wait_seconds)"
            raise PipelineError(_refusal(runtime, each, needed, why, kinds))
        if not told:
            tell(f"waiting up to {seconds:g} s for a node with room for {needed}", "waiting")
        told = True
        time.sleep(min(NOTICE_SECONDS, left))


def _expect_nodes(workers: int, each: Mapping[str, float]) -> None:
    """Raise PipelineError if a cluster's nodes, with all that may be started, hold fewer workers at a time."""
    may_come = node_types.most(lambda kind: places(kind, each))
    if may_come is None:
        return
    most = max(may_come, sum(places(node, each) for node in _up()))
    if most < workers:
        raise PipelineError(
            f"the cluster, with all nodes that its autoscaler may start, has room for {most} at a time of "
            f"{_described(workers, each)}: lower train.workers (or train.min_workers, if that is set), or let more "
            "nodes be started (maxReplicas of KubeRay's group, max_workers of the launcher's)"
        )


def _up() -> list[Mapping[str, float]]:
    """The resources of the nodes that are up."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _holds(kinds: Sequence[Mapping[str, float]], each: Mapping[str, float]) -> bool:
    """Whether nodes of one of some kinds have room for a worker, if they are idle."""
    return any(places(kind, each) for kind in kinds)


def _refusal(
    runtime: Runtime, each: Mapping[str, float], needed: str, why: str, kinds: Sequence[Mapping[str, float]]
) -> str:
    """That no node can hold a worker, what of it is too much, and what to do; `kinds` are of nodes that are not up."""
    return (
        f"no node of the cluster has room for one of {needed}, and {why}: "
        f"{_lacking(runtime, each, [*_up(), *kinds])}: correct that in the recipe, or add nodes that have it"
    )


def _lacking(runtime: Runtime, each: Mapping[str, float], kinds: Sequence[Mapping[str, float]]) -> str:
    """What of a worker's resources no kind of node has enough of, or all of it where none has it together."""
    short = [name for name, amount in each.items() if not _holds(kinds, {name: amount})]
    return ", ".join(_asked(runtime, name, each[name], kinds) for name in short or each)


def _asked(runtime: Runtime, name: str, amount: float, kinds: Sequence[Mapping[str, float]]) -> str:
    """The field that asks for a resource, what it says, and what there is of it."""
    if name.startswith(TYPE):
        types = {other.removeprefix(TYPE) for kind in kinds for other in kind if other.startswith(TYPE)}
        known = f"known are {', '.join(sorted(types))}" if types else "none is known"
        return f"{_field(runtime, name, amount)} {name.removeprefix(TYPE)} ({known})"
    most = max((kind.get(name, 0) for kind in kinds), default=0)
    return f"{_field(runtime, name, amount)} {amount:g} (known nodes have at most {most:g})"


def _field(runtime: Runtime, name: str, amount: float) -> str:
    """The field of the recipe that asks for so much of a resource; else the resource."""
    if name.startswith(TYPE):
        return "runtime.accelerator_type"
    if name == "GPU":
        return "runtime.gpus_per_worker"
    if name == "CPU":
        fields = [field for field in ("cpus_per_worker", "translate_cpus") if getattr(runtime, field) == amount]
        return f"runtime.{fields[0]}" if fields else name
    return f"runtime.translate_resource {name}"


def _await_room(runtime: Runtime, workers: int, each: Mapping[str, float]) -> None:
    """Hold places for workers, which has an autoscaler start nodes, until all are there; then let go of them."""
    from ray.util import placement_group, remove_placement_group

    gc.collect()  # with what failed before, Python may still hold the handles of workers, and so their places
    group = placement_group([dict(each)] * workers)
    needed, until = _described(workers, each), time.monotonic() + runtime.wait_seconds
    try:
        if group.wait(min(NOTICE_SECONDS, runtime.wait_seconds)):
            return
        tell(f"waiting up to {runtime.wait_seconds:g} s for nodes with room for {needed}", "waiting")
        kinds = node_types.startable()
        while not group.wait(min(NOTICE_SECONDS, max(0.0, until - time.monotonic()))):
            if (kinds is None or kinds) and _has_no_such_nodes(each):  # those that are started by hand may come
                raise PipelineError(_refusal(runtime, each, needed, NONE_TO_START, kinds or ()))
            if time.monotonic() >= until:
                raise PipelineError(
                    f"the cluster has had no room for {needed} in {runtime.wait_seconds:g} s (runtime.wait_seconds): "
                    "look at `ray status` for nodes that do not come and for what other jobs hold, ask for less, or "
                    "wait longer; the same command goes on from here"
                )
    finally:
        remove_placement_group(group)


def has_room(each: Mapping[str, float]) -> bool:
    """Whether another worker could be placed now, besides all that run."""
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(each)])
    try:
        return bool(group.wait(ROOM_SECONDS))
    finally:
        remove_placement_group(group)


def nodes_up() -> set[str]:
    """The ids of the nodes that are up, as far as Ray knows."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def look_for_nodes() -> None:
    """Let Ray take notice of nodes that have come or gone: what sizes a training by them looks every 20 s only."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as reservations

    coordinator = reservations.get_or_create_autoscaling_coordinator()
    ray.get(coordinator.get_reserved_resources.remote("", recompute=True))


def _has_no_such_nodes(each: Mapping[str, float]) -> bool:
    """Whether no node could hold such a worker even if idle, and the autoscaler says that it cannot start one."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    if _holds(_up(), each):
        return False
    said = GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status()).autoscaling_state
    asked = [
        one
        for group in said.infeasible_gang_resource_requests
        for one in (*group.requests, *(one for choice in group.bundle_selectors for one in choice.resource_requests))
    ]
    return any(each.items() <= dict(one.resources_bundle).items() for one in asked)


def _described(workers: int, each: Mapping[str, float]) -> str:
    return f"{workers} × " + ", ".join(f"{name} {amount:g}" for name, amount in each.items())


def tell(text: str, event: str = "note") -> None:
    """Say something of where the work runs."""
    logs.tell(f"  {text}", event)


def _set_up_data(runtime: Runtime) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # shards report their own progress
    context.max_errored_blocks = 0
    context.set_config(WAIT, runtime.wait_seconds)
    context.raise_original_map_exception = True  # else a typed error loses its type on the way to the driver
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
