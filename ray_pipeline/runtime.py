"""Where Ray is started and its pools are sized: the one home of cluster knobs."""

import gc
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from ray_pipeline import s3
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Runtime

WORKER_ENVIRONMENT = (*s3.VARIABLES, "GOOGLE_GEMINI_BASE_URL", "HF_HOME")
"""Handed from the driver to every worker. Secrets are not: a cluster's nodes have them in their own environment."""
ANSWER_SECONDS = 5.0
"""In which a cluster's head has to answer; ray.init alone would try a dead address for most of a minute."""
NOTICE_SECONDS = 3.0
"""After which a job says that it waits for nodes."""

KNOBS = {
    "CPU": "runtime.cpus_per_worker",
    "GPU": "runtime.gpus_per_worker",
    "accelerator_type": "runtime.accelerator_type",
}
"""The field of the recipe that asks for a resource."""


def start(runtime: Runtime) -> None:
    """Start Ray here, or join the cluster of the job; nothing happens if Ray is up. Takes about 3 to 15 seconds.

    Raises PipelineError if no cluster answers at `runtime.address` within seconds, or if it cannot be joined.
    """
    import ray

    if not ray.is_initialized():
        environment = {name: os.environ[name] for name in WORKER_ENVIRONMENT if name in os.environ}
        environment |= {"TOKENIZERS_PARALLELISM": "false", s3.REACHED_VARIABLE: "1"}
        options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "logging_level": logging.ERROR}
        if runtime.address == "local":
            _start_here(runtime, options)
        else:
            _join(runtime.address, options)
    _quiet()


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


def worker_count(wanted: int | None, cpus_each: float = 1) -> int:
    """How many workers a stage gets: as the recipe says, else as many as the cluster's CPUs hold."""
    import ray

    return wanted or max(1, int(ray.cluster_resources().get("CPU", 1) // cpus_each))


def gpu_placement(runtime: Runtime) -> dict[str, float]:
    """What a worker on a GPU asks for besides CPUs and GPUs: a trace of the resource that names the GPU's type."""
    if not runtime.gpus_per_worker or runtime.accelerator_type is None:
        return {}
    return {f"accelerator_type:{runtime.accelerator_type}": 0.001}


def model_worker(runtime: Runtime) -> dict[str, float]:
    """The resources of a worker that holds a model: to embed, train, score or translate."""
    wanted = {"CPU": runtime.cpus_per_worker, "GPU": runtime.gpus_per_worker, **gpu_placement(runtime)}
    return {name: amount for name, amount in wanted.items() if amount}


def check_room(runtime: Runtime, workers: int = 1, each: Mapping[str, float] | None = None) -> None:
    """Wait until so many workers can be placed at once, by default those that hold a model.

    Raises PipelineError at once if that can never be, and on a cluster, whose nodes may still come, after
    `runtime.wait_seconds`.
    """
    wanted = dict(each or model_worker(runtime))
    check_limits(runtime, workers, wanted)
    if runtime.address != "local":
        _await_room(runtime, workers, wanted)


def check_limits(runtime: Runtime, workers: int = 1, each: Mapping[str, float] | None = None) -> None:
    """Raise PipelineError if so many workers, by default those that hold a model, can never be placed at once."""
    limits = _limits(runtime)
    if limits is None:
        return
    for resource, amount in (each or model_worker(runtime)).items():
        there = limits.get(resource, 0)
        if amount * workers > there:
            where = "this machine's Ray" if runtime.address == "local" else "the cluster at its largest"
            name = KNOBS.get(resource.partition(":")[0], "runtime.translate_resource")
            raise PipelineError(
                f"{name} {amount:g} for {workers} worker(s) needs {amount * workers:g} {resource}s, {where} has "
                f"{there:g}: lower {name} or the number of workers, or run on a cluster that has them"
            )


def _limits(runtime: Runtime) -> Mapping[str, float] | None:
    """The most that Ray can ever offer, by resource; null for a cluster that does not say what it may start."""
    import ray
    from ray._private.state import state

    there: dict[str, float] = ray.cluster_resources()
    if runtime.address == "local":
        return there
    most = state.get_max_resources_from_cluster_config()
    return None if most is None else {name: max(most.get(name, 0), there.get(name, 0)) for name in {*most, *there}}


def _await_room(runtime: Runtime, workers: int, each: Mapping[str, float]) -> None:
    """Hold places for workers, which has an autoscaler start nodes, until all are there; then let go of them."""
    from ray.util import placement_group, remove_placement_group

    gc.collect()  # with what failed before, Python may still hold the handles of workers, and so their places
    group = placement_group([dict(each)] * workers)
    try:
        if group.wait(min(NOTICE_SECONDS, runtime.wait_seconds)):
            return
        needed = f"{workers} × " + ", ".join(f"{name} {amount:g}" for name, amount in each.items())
        print(
            f"  waiting up to {runtime.wait_seconds:g} s for nodes with room for {needed}", file=sys.stderr, flush=True
        )
        if not group.wait(max(0.0, runtime.wait_seconds - NOTICE_SECONDS)):
            raise PipelineError(
                f"the cluster has had no room for {needed} in {runtime.wait_seconds:g} s (runtime.wait_seconds): look "
                "at `ray status` for nodes that do not come and for what other jobs hold, ask for less, or wait "
                "longer; the same command goes on from here"
            )
    finally:
        remove_placement_group(group)


def _quiet() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # shards report their own progress
    context.max_errored_blocks = 0
    context.raise_original_map_exception = True  # else a typed error loses its type on the way to the driver
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
