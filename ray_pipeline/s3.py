"""How S3 is reached: endpoint, region, profile, patience, and what its refusals mean.

All of it stands in the environment, which every Ray worker inherits; a recipe's `storage` section is put there too.
Keys are read there by botocore alone and never pass through this code.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_pipeline.recipe import Storage

CONNECTIONS = 32
"""Requests under way at once, of one process."""
CONNECT_SECONDS = 10
PART_BYTES = 50 << 20
"""The bytes of a part of an upload; an object twice as large or larger is uploaded in parts."""
RANGE_BYTES = 8 << 20
"""Read ahead of what is asked for, of a file that is read bit by bit."""
FIRST_CONTACT = {"retries": {"mode": "standard", "max_attempts": 3}}
"""Botocore's settings for the first request; its own take minutes to find out that an endpoint is not there."""
PATIENT = {"retries": {"mode": "standard", "max_attempts": 12}}
"""Once an endpoint has answered: it may throttle, or be away for a minute or two."""
REACHED_VARIABLE = "RAY_PIPELINE_STORAGE_REACHED"
"""Set for workers, whose driver has reached the storage before."""
ANONYMOUS_VARIABLE = "RAY_PIPELINE_STORAGE_ANONYMOUS"
"""Set where requests go unsigned, to public buckets."""
ADDRESSING_VARIABLE = "RAY_PIPELINE_STORAGE_ADDRESSING"
"""Where a bucket's name stands, `path` or `virtual`; not set: botocore decides by the endpoint."""
VARIABLES = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", ANONYMOUS_VARIABLE,
    ADDRESSING_VARIABLE,
)  # fmt: skip
"""What workers must know to reach the same storage; none is a secret."""
PERMISSIONS = {
    "read": "s3:GetObject",
    "write": "s3:PutObject and s3:AbortMultipartUpload",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
    "look at": "s3:GetObject and s3:ListBucket",
}
"""Which AWS permission an action needs."""

_reached: set[tuple[str | None, str]] = set()


def environment(settings: "Storage") -> dict[str, str]:
    """A recipe's storage section as variables; what it leaves null is left to the environment as it is."""
    wanted = {
        "AWS_ENDPOINT_URL": settings.endpoint_url,
        "AWS_ENDPOINT_URL_S3": settings.endpoint_url,
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_PROFILE": settings.profile,
        ANONYMOUS_VARIABLE: "1" if settings.anonymous else None,
        ADDRESSING_VARIABLE: settings.addressing,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def options(variables: Mapping[str, str], patient: bool) -> dict[str, Any]:
    """What s3fs is told; botocore itself would pass over AWS_REGION."""
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    style = variables.get(ADDRESSING_VARIABLE)
    config = {
        "connect_timeout": CONNECT_SECONDS,
        "max_pool_connections": CONNECTIONS,
        **(PATIENT if patient else FIRST_CONTACT),
        **({"s3": {"addressing_style": style}} if style else {}),
    }
    found: dict[str, Any] = {"config_kwargs": config, "anon": bool(variables.get(ANONYMOUS_VARIABLE))}
    found |= {"endpoint_url": endpoint} if endpoint else {}
    return found | ({"client_kwargs": {"region_name": region}} if region else {})


def connect(url: str) -> Any:
    """The file system of a url with a scheme, S3's with patience once its bucket has answered."""
    import fsspec

    chosen = {}
    if is_s3(url):
        chosen = options(os.environ, patient=_bucket(url) in _reached or REACHED_VARIABLE in os.environ)
        chosen["default_block_size"] = RANGE_BYTES
    # Other processes write what we list, so no listing may be remembered.
    return fsspec.core.url_to_fs(url, use_listings_cache=False, **chosen)[0]


def pyarrow_client() -> Any:
    """Pyarrow's own client by the settings of the environment; it pickles without keys, which each process finds."""
    from pyarrow import fs

    variables = options(os.environ, patient=False)
    return fs.S3FileSystem(
        endpoint_override=variables.get("endpoint_url"),
        region=variables.get("client_kwargs", {}).get("region_name"),
        anonymous=variables["anon"],
        force_virtual_addressing=os.environ.get(ADDRESSING_VARIABLE) == "virtual",
        connect_timeout=CONNECT_SECONDS,
        check_directory_existence_before_creation=True,  # else it writes a marker for each folder above, too
    )


def listing(url: str, recursive: bool) -> dict[str, int]:
    """Bytes of the objects in or below a folder, by url; raises OSError without a number.

    By pyarrow's own client, which takes a fraction of the time that s3fs does for 100,000 names.
    """
    from pyarrow import fs

    scheme, _, path = url.partition("://")
    selector = fs.FileSelector(path.rstrip("/"), recursive=recursive, allow_not_found=True)
    return {f"{scheme}://{info.path}": info.size for info in pyarrow_client().get_file_info(selector) if info.is_file}


def is_s3(url: str) -> bool:
    """Whether the url names S3."""
    return url.startswith(("s3://", "s3a://"))


def reached(url: str) -> None:
    """Remember that a url's bucket has answered."""
    _reached.add(_bucket(url))


def faults() -> tuple[type[Exception], ...]:
    """What goes wrong on the way to the store and is no OSError."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from botocore.exceptions import ClientError as Refusal

    return BotoCoreError, Refusal, ClientError


def refusal(error: PermissionError, action: str) -> str:
    """What to do where the store does not let these credentials do it."""
    return (
        f"{error}; check the credentials of the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID), and that they have "
        f"{PERMISSIONS[action]} on this bucket, and, if a KMS key encrypts it, kms:GenerateDataKey and kms:Decrypt on "
        "that key"
    )


def _bucket(url: str) -> tuple[str | None, str]:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"), url.split("/", 3)[2]
