"""The scoring job: raw files to shards of scores on Ray, resumed by shard, with a manifest at the end."""

import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ray_pipeline import artifact, claim, rawfiles, runtime, shards, storage, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.chance import Hashes
from ray_pipeline.decision import Decision
from ray_pipeline.errors import CorruptArtifactError, InputError
from ray_pipeline.prompt import SHOWN
from ray_pipeline.rawfiles import RawFile
from ray_pipeline.recipe import Engine, Runtime, Spelling
from ray_pipeline.scoring import decided, rows, scorer
from ray_pipeline.scoring.rows import Columns, Piece
from ray_pipeline.scoring.scorer import Scored
from ray_pipeline.shards import Result, Source

RUN = "run.json"
"""What the shards of a folder are of; written before the first of them."""
PIECES = "pieces.json"
"""How the input of that run was cut: to find where the rows of JSON Lines and CSV end, all of it has to be read."""
UNCHECKED = "unchecked base"
"""Among the inputs of a run: the digest of a base that was taken unseen."""
CONTENT = "adapter content"
"""Among the inputs: a hash of the adapters' files, another one where an adapter was trained again."""
IDS_AT_ONCE = 1 << 24
"""Hashes of ids that are compared at a time, in 128 MiB."""
IDS_OF_SHARDS = 16
"""Shards of which the ids are read at a time, all at once from an object store."""
STAGE = "scoring"
SCHEMA_VERSION = 7
Format = Literal["parquet", "csv", "jsonl"]
Score = Callable[[list[dict[str, Any]]], Scored]


@dataclass(frozen=True)
class Job:
    """What is scored, with what, and where to."""

    files: Sequence[RawFile]
    columns: Columns
    adapter: str
    """Fingerprint of what scores."""
    decision: Decision
    output: str
    format: Format = "parquet"
    shard_rows: int = 50_000
    workers: int | None = None
    """Null: as many as the nodes that are up have room for when the work begins."""
    runtime: Runtime = field(default_factory=Runtime)
    content: str | None = None
    """Hash of the files of what scores."""
    unchecked_base: str | None = None
    """Digest of a base that nothing but the user's word says to be the adapter's."""
    engine: Engine = "transformers"
    merge: bool = False
    """Whether an adapter in 16 bits is added to its base; see `Score.merge`."""
    spelling: Spelling = rows.AS_IS
    """How the adapter's raw data were spelled; the adapter's fingerprint covers it."""
    max_rejected_share: float = 0.05
    """With more, the job ends without a manifest; no part of what the shards are."""

    @property
    def config(self) -> dict[str, Any]:
        """What decides the shards' content, besides files and adapter."""
        engine: dict[str, Any] = {} if self.engine == "transformers" else {"engine": self.engine}
        engine |= {"merge": True} if self.merge and not engine else {}
        own: dict[str, Any] = {}
        if self.decision != Decision(self.decision.threshold):
            own["decision"] = asdict(self.decision)
        if read_as := {file.url: file.format for file in self.files if rawfiles.is_named_otherwise(file)}:
            own["read_as"] = read_as
        rest = {"threshold": self.decision.threshold, "format": self.format, "shard_rows": self.shard_rows}
        return {"columns": asdict(self.columns)} | rest | engine | own


class Work:
    """Scores a table of `rows.CHECKED`; a row that is refused keeps its reason."""

    def __init__(self, make: Callable[[], Score], adapter: str, decision: Decision) -> None:
        self._score, self._adapter, self._decision = make(), adapter, decision

    def __call__(self, table: pa.Table) -> Result:
        sound = table.filter(table.column("reason").is_null())
        found = self._score(sound.select(SHOWN).to_pylist())
        one = pa.array([self._adapter], pa.string())
        spoken, targets = (sound.column(name).to_pylist() for name in ("language", "target"))
        answers = decided.answers(self._decision, found.scores, spoken, targets)
        columns = {
            "score": found.scores,
            "probability": answers.probabilities,
            "threshold": answers.thresholds,
            "prediction": answers.predictions,
            "truncated": found.truncated,
            "adapter": one.take(pa.array(np.zeros(sound.num_rows, np.int8))),
        }
        for name, values in columns.items():
            sound = sound.append_column(name, pa.array(values))
        done = shards.divided(sound.drop_columns(["reason", "detail"]), pa.array(found.reasons, pa.string()))
        refused = [table.filter(table.column("reason").is_valid())]
        refused += [done.rejected.select(rows.CHECKED.names)] if done.rejected is not None else []
        counts = {"truncated": float(found.truncated.sum()), "repeated": float(found.repeated)}
        return Result(tables.conform(done.table, tables.SCORED_PAIRS), pa.concat_tables(refused), counts)


def run(job: Job, make: Callable[[], Score]) -> Artifact:
    """Score what is not scored yet, `make()` on each worker being what scores; Ray must be up.

    Raises InputError for an output folder that holds another run's shards, or the input, for files without rows or of
    other columns, and for more rejected rows than the job allows; StoppedError while another run writes there.
    """
    with claim.held(job.output):
        return _run(job, make)


def _run(job: Job, make: Callable[[], Score]) -> Artifact:
    started = time.monotonic()
    files = [file.url for file in job.files]
    hashes = storage.for_each(storage.hash_once, files)
    inputs = {"adapter": job.adapter} | dict(zip(files, hashes, strict=True))
    inputs |= {CONTENT: job.content} if job.content else {}
    inputs |= {UNCHECKED: job.unchecked_base} if job.unchecked_base else {}
    _claim(job, inputs)
    finished = artifact.load(job.output)
    if finished is not None:
        return finished
    runtime.check_room(job.runtime)
    pieces = _pieces(job)
    if not pieces:
        raise InputError(f"{', '.join(files[:3])}: holds no rows; check --input")
    counts = shards.map_shards(
        [Source(name, piece.part.file.url, piece.rows or 0) for name, piece in pieces.items()],
        partial(Work, make, job.adapter, job.decision),
        job.output,
        tables.SCORED_PAIRS,
        label="score",
        **runtime.model_pool(job.runtime, _workers(job)),
        at_once=scorer.at_once(job.runtime.gpus_per_worker, job.engine),
        read=partial(_read, pieces, job.columns, job.spelling),
        write=partial(_write, job.format),
    )
    _expect_unchanged(job, hashes)
    _check_rejected(job, counts)
    extra = {name: int(counts.extra.get(name, 0)) for name in ("truncated", "repeated")}
    extra["repeated_ids"] = repeated_ids(job.output, counts.rows_out) if job.columns.id else 0
    return artifact.commit(job.output, STAGE, job.config, inputs, counts, time.monotonic() - started, extra)


def _expect_unchanged(job: Job, hashes: Sequence[str]) -> None:
    """Raise InputError where the input is no longer what its shards are said to be of.

    Of a local file whose size and time of change are the same, and of an S3 object, nothing is read for that.
    """
    now = storage.for_each(rawfiles.digest_now, [file.url for file in job.files])
    changed = [file.url for file, before, here in zip(job.files, hashes, now, strict=True) if here != before]
    if changed:
        raise InputError(
            f"{', '.join(changed[:3])}: changed while it was scored: delete {job.output} and run the same command again"
        )


def _pieces(job: Job) -> dict[str, Piece]:
    """As the first attempt has cut the input, which is the same one as long as the run is."""
    url = storage.join(job.output, PIECES)
    try:
        return rows.of_numbers(job.files, json.loads(storage.read_bytes(url)))
    except FileNotFoundError:
        found = rows.pieces(job.files, job.shard_rows, job.columns)
        storage.write_bytes(url, json.dumps(rows.as_numbers(found)).encode())
        return found
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(
            f"{url}: is damaged ({error}); delete this file and run the same command again: what is scored is kept"
        ) from error


def _workers(job: Job) -> int:
    """How many score; of a cluster that grows, only a number that was asked for has it start more nodes."""
    found = runtime.worker_count(job.workers, runtime.model_worker(job.runtime))
    if job.workers is None and job.runtime.gpus_per_worker and job.runtime.address != "local":
        runtime.tell(f"{found} worker(s): as many as the GPUs that are up; --workers sets more")
    return found


def _check_rejected(job: Job, counts: Counts) -> None:
    """A job that has refused most of its rows must not look like one that is done."""
    if counts.rows_rejected <= job.max_rejected_share * counts.rows_in:
        return
    why = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.reasons.items()))
    raise InputError(
        f"{job.output}: {counts.rows_rejected} of {counts.rows_in} rows were rejected ({why}), more than "
        f"--max-rejected-share {job.max_rejected_share:g} allows; look at its folder rejected, then mend the input, or "
        "run the same command with a higher share: what is scored is kept"
    )


def repeated_ids(folder: str, rows: int, at_once: int = IDS_AT_ONCE) -> int:
    """How many rows in a folder's shards have an id that another row before them has; by 64-bit hashes of the ids.

    Each shard is read once; 8 bytes a row go to a local disk, of which one part after another is counted in memory.
    """
    urls = [storage.join(folder, name) for name in artifact.present_shards(folder)]
    parts = max(1, -(-rows // at_once))
    with tempfile.TemporaryDirectory(prefix="ids-") as scratch:
        files = [Path(scratch, str(part)) for part in range(parts)]
        for file in files:
            file.touch()
        for start in range(0, len(urls), IDS_OF_SHARDS):
            for hashed in storage.for_each(_id_hashes, urls[start : start + IDS_OF_SHARDS]):
                for part, file in enumerate(files):
                    with file.open("ab") as out:
                        out.write(hashed[hashed % parts == part].tobytes())
        return sum(_repeated(np.fromfile(file, np.uint64)) for file in files)


def _id_hashes(url: str) -> Hashes:
    from pandas.util import hash_array

    found: Hashes = hash_array(storage.read_parquet(url, ["id"]).column("id").to_numpy())
    return found


def _repeated(hashes: Hashes) -> int:
    return len(hashes) - len(np.unique(hashes))


def _read(
    pieces: Mapping[str, Piece], columns: Columns, spelling: Spelling, source: Source, _: list[str] | None
) -> pa.Table:
    return rows.read(pieces[source.name], columns, spelling)


def written(format: Format) -> list[str]:
    """Names of the kinds of files that a job leaves in its output."""
    shards = ("part-000000.parquet", f"part-000000.{format}", "rejected/part-000000.parquet")
    return [RUN, PIECES, artifact.MANIFEST, *shards]


def _write(format: Format, folder: str, name: str, result: Result, schema: pa.Schema | None) -> Counts:
    """The shard comes last: that it is there means that what stands beside it is whole."""
    if format != "parquet":
        data = {"csv": _csv, "jsonl": _jsonl}[format](result.table)
        storage.write_bytes(storage.join(folder, name.replace(".parquet", f".{format}")), data)
    return shards.store(folder, name, result, schema)


def _csv(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def _jsonl(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()


def _claim(job: Job, inputs: Mapping[str, str]) -> None:
    """Make the output folder this run's; raises InputError if it is another's, naming both."""
    if any(file.url.startswith(job.output.rstrip("/") + "/") for file in job.files):
        raise InputError(f"{job.output}: holds the input, too: name another --output")
    order = [file.url for file in job.files]  # pieces and ids go by the files' numbers
    run = {"version": SCHEMA_VERSION, "config": job.config, "inputs": dict(inputs), "order": order}
    url = storage.join(job.output, RUN)
    mine = json.loads(json.dumps(run))  # as it is read back
    try:
        theirs = json.loads(storage.read_bytes(url))
    except FileNotFoundError:
        if artifact.present_shards(job.output):
            raise InputError(f"{job.output}: holds shards of something else: name another --output") from None
        storage.remove_file(storage.join(job.output, PIECES))  # of a run whose other files somebody has removed
        storage.write_bytes(url, json.dumps(mine, ensure_ascii=False, indent=1).encode())
        return
    except ValueError as error:
        raise CorruptArtifactError(
            f"{url}: is damaged ({error}); delete the folder {job.output} and run the same command again"
        ) from error
    if theirs != mine:
        raise InputError(
            f"{job.output}: holds another run's shards: {_difference(theirs, mine)}; name another --output, or delete "
            "this folder"
        )


def _difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """What first differs, as `name: theirs there, mine here`."""
    flat = [_flat(run) for run in (theirs, mine)]
    for name in {**flat[0], **flat[1]}:
        there, here = (one.get(name, "none") for one in flat)
        if there != here:
            return f"its {name} is {there}, this run's is {here}"
    if theirs["version"] == mine["version"]:
        there, here = next(both for both in zip(theirs["order"], mine["order"], strict=True) if both[0] != both[1])
        return f"where its input has {there}, this run's has {here}: give the files of --input in the same order"
    return "they were made by another version"


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {("adapter" if name == "adapter" else f"input {name}"): value for name, value in run["inputs"].items()}
    adapter = {"adapter": inputs.pop("adapter", "none")}
    return adapter | inputs | dict(run["config"]) | {"version": run["version"]}
