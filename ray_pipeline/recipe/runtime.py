"""Sections of where and how wide a run works; no part of an artifact's identity."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ray_pipeline.recipe.section import Count, Positive, Section, holds_credentials

QueryPrefix = Literal["auto", "always", "never"]


class Storage(Section):
    """Where `s3://` is and how it is reached, in place of the environment; never part of an artifact's identity.

    Keys have no place here: they come from the environment (AWS_ACCESS_KEY_ID, …) or the profile's file on each node,
    and of the two the environment's are taken.
    """

    endpoint_url: str | None = None
    """A store other than AWS; null: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS."""
    region: str | None = None
    """Null: AWS_REGION, else AWS_DEFAULT_REGION."""
    addressing: Literal["path", "virtual"] | None = None
    """Whether a bucket stands in a url's path or before its host; null: as AWS and most other stores want it."""
    profile: str | None = None
    """Whose credentials to take from the AWS configuration of each node; null: AWS_PROFILE. Training's checkpoints are
    written by a client that assumes no role (`role_arn`): for that, put the role's own keys into the environment."""
    anonymous: bool = False
    """Requests go unsigned, which public buckets allow."""

    @field_validator("endpoint_url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "http://none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("storage.endpoint_url must be a url such as https://s3.example.com")
        if holds_credentials(url or ""):
            raise ValueError("storage.endpoint_url must not hold credentials: they come from the environment")
        return url


class Runtime(Section):
    """Where and how wide the work runs; never part of an artifact's identity."""

    address: str = "local"
    """`local` starts Ray here; `auto` joins the cluster that the job runs on."""
    cpus: Positive | None = None
    """CPUs of a local Ray; null: all."""
    shard_rows: Positive = 50_000
    """Rows of one Parquet shard, about."""
    map_workers: Positive | None = None
    """Workers of the CPU stages; null: one per CPU of the cluster."""
    translate_workers: Positive = 1
    """Workers that speak to Gemini, or hold the local translator."""
    translate_cpus: Annotated[float, Field(gt=0)] = 0.5
    """CPUs of a worker that speaks to Gemini: it mostly waits."""
    translate_resource: str | None = None
    """A custom Ray resource of which such a worker takes one: only nodes that offer it are used, or started, for it."""
    embed_workers: Positive = 1
    score_workers: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each embedding, training and scoring worker; 0 runs on CPU."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    accelerator_type: str | None = None
    """The GPUs' type by Ray's name, e.g. `A100` or `L4`; null: any. Only nodes with such GPUs are used, or started."""
    usd_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """What an hour of one GPU costs you, of `accelerator_type` if that is set: the dry run then says dollars, too."""
    wait_seconds: Annotated[float, Field(gt=0)] = 1200
    """How long a stage waits for a cluster's nodes that its workers need, until it gives up with a message."""
    score_batch_rows: Positive | None = None
    """Rows of one batch; null: 64 on a CPU, and on a GPU by tokens."""
    score_batch_tokens: Positive | None = None
    """Tokens of one batch, counted with padding, in place of `score_batch_rows`; null: 16,384 on a GPU where that is
    null too, else by rows. A batch that does not fit the memory is halved."""
    score_share_prefix: bool = True
    """Compute the tokens that all prompts begin with once, for models that this was tested with; exact."""
    score_query_prefix: QueryPrefix = "auto"
    """With it, compute the tokens of a query once for its rows of a batch, which need not stand together in the input;
    exact too. `auto`: where that spares a twentieth of the tokens."""
    score_unique: bool = True
    """Score equal prompts of a shard once."""
    embed_batch_rows: Positive = 256
    max_failures: Count = 3
    """Restarts of training after a worker has failed; what is lost with its node is not counted."""
    resize_seconds: Annotated[float, Field(ge=0)] = 600
    """For how long at least a training with `train.min_workers` goes on with fewer than `train.workers` before more
    take part: it keeps a checkpoint, and all begin again from that, for which each loads the base."""

    @model_validator(mode="after")
    def _has_the_resource(self) -> Self:
        if self.translate_resource is not None and self.address == "local":
            raise ValueError(
                "runtime.translate_resource needs a cluster whose nodes offer it: set runtime.address, or leave it out"
            )
        return self
