"""Where Ray is started and its pools are sized: the one home of cluster knobs."""

import logging
import os
from typing import Any

from ray_pipeline import s3
from ray_pipeline.errors import PipelineError
from ray_pipeline.recipe import Runtime

WORKER_ENVIRONMENT = (*s3.VARIABLES, "GOOGLE_GEMINI_BASE_URL", "HF_HOME")
"""Handed from the driver to every worker. Secrets are not: a cluster's nodes have them in their own environment."""


def start(runtime: Runtime) -> None:
    """Start Ray here, or join the cluster of the job; nothing happens if Ray is up. Takes about 3 to 15 seconds."""
    import ray

    if not ray.is_initialized():
        environment = {name: os.environ[name] for name in WORKER_ENVIRONMENT if name in os.environ}
        environment |= {"TOKENIZERS_PARALLELISM": "false", s3.REACHED_VARIABLE: "1"}
        options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "logging_level": logging.ERROR}
        if runtime.address == "local":
            # A driver of its own: what its core writes to the terminal at lower levels stands in Ray's logs too.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            options |= {"num_cpus": runtime.cpus, "include_dashboard": False, "log_to_driver": False}
        try:
            ray.init(address=runtime.address, **options)
        except ConnectionError as error:
            raise PipelineError(
                f"runtime.address {runtime.address}: no Ray cluster answers ({error}): run the job on the cluster, "
                "or set runtime.address=local to start Ray here"
            ) from error
    _quiet()


def stop() -> None:
    """Leave Ray, ending it if it was started here."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def worker_count(wanted: int | None, cpus_each: float = 1, gpus_each: float = 0) -> int:
    """How many workers a stage gets: as the recipe says, else as many as the cluster's GPUs, or its CPUs, hold."""
    import ray

    resource, each = ("GPU", gpus_each) if gpus_each else ("CPU", cpus_each)
    return wanted or max(1, int(ray.cluster_resources().get(resource, 1) // each))


def check_room(runtime: Runtime, workers: int = 1) -> None:
    """Raise PipelineError if a local Ray cannot ever place so many workers at once, rather than wait for ever."""
    import ray

    if runtime.address != "local":
        return  # a cluster may grow
    for resource, each in (("GPU", runtime.gpus_per_worker), ("CPU", runtime.cpus_per_worker)):
        there = ray.cluster_resources().get(resource, 0)
        if each * workers > there:
            name = f"runtime.{resource.lower()}s_per_worker"
            raise PipelineError(
                f"{name} {each:g} for {workers} worker(s) needs {each * workers:g} {resource}s, this machine's Ray has "
                f"{there:g}: lower {name} or the number of workers, or run on a cluster"
            )


def _quiet() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # shards report their own progress
    context.max_errored_blocks = 0
    context.raise_original_map_exception = True  # else a typed error loses its type on the way to the driver
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
