"""Files against manifests: are they whole, of their schema, and do their rows add up?"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, reading, storage, tables
from ray_pipeline.artifact import Artifact, Manifest
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.validation.check import Check, Checks
from ray_pipeline.workers import IN_PROCESS, Workers

if TYPE_CHECKING:  # with all stages, which those who look at a file need not wait for
    from ray_pipeline.pipeline import Step

SCHEMAS: Mapping[str, pa.Schema] = {
    "ingest": tables.PAIRS, "languages": tables.PAIRS, "split": tables.PAIRS, "translate": tables.TRANSLATIONS,
    "audit": tables.AUDITED, "dedupe": tables.PAIRS, "negatives": tables.NEGATIVES, "mix": tables.PAIRS,
    "encode": tables.ENCODED, "out_of_fold": tables.OUT_OF_FOLD, "self_validation": tables.VERDICTS,
    "train": tables.CURVES, "score": tables.SCORES, "evaluate": tables.PREDICTIONS,
}  # fmt: skip
"""The schemas of the stages whose tables are of one whatever the recipe says."""
PASSED_ON = {
    "languages": "ingest", "split": "languages", "audit": "translate", "encode": "mix",
    "self_validation": "out_of_fold", "evaluate": "score",
}  # fmt: skip
"""Stages that take in every row that another gives out."""
MIXED = ("train", "tune")
"""Parts of which mix takes in every row of dedupe and negatives."""


@dataclass(frozen=True)
class Table:
    """A finished stage of a run, and those of its shards that can be read."""

    artifact: Artifact
    shards: Sequence[str]
    schema: pa.Schema
    """Without metadata; of no column where there is no shard."""
    refused: Sequence[str] = ()
    """Files of rejected rows that can be read."""

    @property
    def manifest(self) -> Manifest:
        """The artifact's."""
        return self.artifact.manifest

    @property
    def whole(self) -> bool:
        """Whether all shards can be read."""
        return len(self.shards) == len(self.manifest.shards)


@dataclass(frozen=True)
class _File:
    """What reading a whole file has shown."""

    rows: int
    schema: pa.Schema
    problem: str | None = None
    """Why it cannot be read."""


def look(step: "Step", found: Artifact, checks: Checks, workers: Workers = IN_PROCESS) -> Table:
    """Check an artifact's manifest and files; returns what can be read of it."""
    _look_at_manifest(step, found, checks.manifests)
    refused, stage = reading.rejected_files(found), step.stage.name
    urls = [*found.shards, *refused]
    known: dict[str, _File] = {}
    for url, file in zip(urls, workers.each(f"files of {stage}", _read, urls), strict=True):
        checks.whole.demand(file.problem is None, url, file.problem or "")
        if file.problem is None:
            known[url] = file
    readable = [url for url in found.shards if url in known]
    for url in readable:
        _look_at_schema(stage, url, known[url].schema, checks.schemas)
    if len(known) == len(urls):  # else the sums are sure to be wrong, which says nothing new
        _look_at_counts(found, refused, {url: file.rows for url, file in known.items()}, checks.counts, workers)
    schema = known[readable[0]].schema if readable else pa.schema([])
    return Table(found, readable, schema, [url for url in refused if url in known])


def _read(url: str) -> _File:
    """Read all of a file."""
    try:
        rows = sum(len(piece) for piece in reading.slices(url))
        return _File(rows, reading.footer(url)[1])
    except CorruptArtifactError as error:
        return _File(0, pa.schema([]), str(error).removeprefix(f"{url}: "))


def _look_at_manifest(step: "Step", found: Artifact, check: Check) -> None:
    manifest, place = found.manifest, storage.join(found.url, artifact.MANIFEST)
    config = json.loads(json.dumps(step.config))
    for name, value, wanted in (
        ("stage", manifest.stage, step.stage.name),
        ("fingerprint", manifest.fingerprint, step.fingerprint),
        ("inputs", manifest.inputs, dict(step.inputs)),
        ("config", manifest.config, config),
        ("shards", sorted(manifest.shards), artifact.present_shards(found.url)),
    ):
        check.demand(value == wanted, place, f"{name} is {value}, but {wanted} by recipe and folder")
    if "schema_version" in manifest.extra:
        own = artifact.fingerprint(manifest.stage, manifest.extra["schema_version"], manifest.config, manifest.inputs)
        check.demand(own == step.fingerprint, place, f"its config and inputs give the fingerprint {own}")


def _look_at_schema(stage: str, url: str, schema: pa.Schema, check: Check) -> None:
    wanted = SCHEMAS.get(stage)
    if stage == "embed":
        field = schema.field("vector") if "vector" in schema.names else None
        sized = field is not None and pa.types.is_fixed_size_list(field.type)
        wanted = tables.embeddings(field.type.list_size if field is not None and sized else 1)
    if wanted is not None:
        check.demand(schema.equals(wanted), url, f"its columns differ: {_difference(schema, wanted)}")


def _difference(schema: pa.Schema, wanted: pa.Schema) -> str:
    there, due = ([str(field) for field in one] for one in (schema, wanted))
    missing, more = [one for one in due if one not in there], [one for one in there if one not in due]
    return f"missing {missing}, too many {more}" if missing or more else "their order is another"


def _look_at_counts(
    found: Artifact, refused_files: Sequence[str], rows: Mapping[str, int], check: Check, workers: Workers
) -> None:
    """Each shard against its footer and the manifest, and their sums against the manifest."""
    manifest, place = found.manifest, storage.join(found.url, artifact.MANIFEST)
    footers = workers.each(f"footers of {manifest.stage}", artifact.shard_counts, found.shards)
    for (name, promised), counts in zip(manifest.shards.items(), footers, strict=True):
        url = storage.join(found.url, name)
        refused = rows.get(storage.join(found.url, "rejected", name), 0)
        check.demand(rows[url] == promised, url, f"holds {rows[url]} rows, its manifest says {promised}")
        check.demand(counts.rows_out == rows[url], url, f"holds {rows[url]} rows, its footer says {counts.rows_out}")
        if manifest.stage not in artifact.WITHOUT_ROWS:
            said = f"{counts.rows_in} rows in, {rows[url]} out and {refused} rejected do not add up"
            check.demand(counts.rows_in == rows[url] + refused, url, said)
    _demand_sums(manifest, place, check)
    if manifest.stage not in artifact.WITHOUT_ROWS:
        written = sum(rows[url] for url in found.shards)
        check.demand(manifest.rows_out == written, place, f"rows_out {manifest.rows_out}, the shards hold {written}")
    reasons = dict(sum(workers.each(f"reasons of {manifest.stage}", _reasons, refused_files), Counter[str]()))
    check.demand(reasons == manifest.reasons, place, f"reasons {manifest.reasons}, the rejected rows say {reasons}")


def _demand_sums(manifest: Manifest, place: str, check: Check) -> None:
    balanced = manifest.rows_in == manifest.rows_out + manifest.rows_rejected
    out = f"{manifest.rows_out} out and {manifest.rows_rejected} rejected"
    check.demand(balanced, place, f"{manifest.rows_in} rows in, but {out}")
    by_reason = sum(manifest.reasons.values())
    check.demand(
        by_reason == manifest.rows_rejected,
        place,
        f"rows_rejected {manifest.rows_rejected}, its reasons sum up to {by_reason}",
    )


def _reasons(url: str) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for piece in reading.slices(url, ["reason"]):
        reasons.update(piece.table.column("reason").to_pylist())
    return reasons


def look_between(run: Mapping[str, Table], check: Check, workers: Workers = IN_PROCESS) -> None:
    """What one stage gives out, the next takes in."""
    for stage, source in PASSED_ON.items():
        if stage in run and source in run:
            _demand_equal(run, stage, f"{source} gives out", run[source].manifest.rows_out, check)
    if "mix" in run and all(stage in run and run[stage].whole for stage in ("dedupe", "negatives")):
        urls = [url for stage in ("dedupe", "negatives") for url in run[stage].shards]
        given = sum(workers.each("rows for mix", _mixed, urls))
        _demand_equal(run, "mix", f"the rows of {' and '.join(MIXED)} in dedupe and negatives are", given, check)
    if {"train", "mix", "self_validation"} <= set(run):
        given = run["mix"].manifest.rows_out - run["self_validation"].manifest.rows_rejected
        _demand_equal(run, "train", "mix and self_validation give out", given, check)
    if {"dedupe", "split"} <= set(run):
        given = run["split"].manifest.rows_out + run["dedupe"].manifest.extra.get("translated", 0)
        _demand_equal(run, "dedupe", "split and audit give out", given, check)


def _mixed(url: str) -> int:
    """Rows that mix takes in."""
    pieces = (piece.table.column("part") for piece in reading.slices(url, ["part"]))
    return sum(pc.sum(pc.is_in(part, pa.array(MIXED))).as_py() or 0 for part in pieces)


def _demand_equal(run: Mapping[str, Table], stage: str, words: str, given: int, check: Check) -> None:
    taken = run[stage].manifest.rows_in
    place = storage.join(run[stage].artifact.url, artifact.MANIFEST)
    check.demand(taken == given, place, f"{taken} rows in, but {words} {given}")
