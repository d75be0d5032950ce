"""Raw files to pairs: every record validated, normalised, or rejected with file, line, field and reason."""

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, logs, rawfiles, shards, storage, tables, telemetry, workers
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.chance import hashes
from ray_pipeline.errors import InputError, StorageError
from ray_pipeline.rawfiles import RawFile, Slice, Unreadable
from ray_pipeline.recipe import SPLITS, Columns, Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import language_code, levels, normalise, stable_id, unseen

WITHOUT_PLACE = (
    "broken JSON",
    "invalid UTF-8",
    "invalid Unicode",
    "wrong number of fields",
    "open quotation mark",
    "duplicate id",
    "missing id",
)
"""Reasons after which a row of dev or test cannot stand in a submission at all."""
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""As text, since that is what CSV holds."""
LANGUAGE_COLUMN = Columns().language
"""Files need not have it: a recipe that names another means one that is there."""
OTHER_SEPARATORS = (" > ", "->", ">", "::", "»", "/", "|", "\\", ";", ", ")
"""What levels of category paths are often joined by; of those that are as frequent, the first is meant."""
DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
PATHS_LOOKED_AT = 10_000
IDS_REMEMBERED = 1_000_000
"""By a preview; in some 100 MB."""
PREVIEW_ROWS = 1_000_000
"""The rows of a split that a preview reads; where there are more, a sample."""
HINTS = {
    "duplicate id": " (ids that repeat across files: data.columns.id: null takes a row's file and line instead)",
    "unknown task": " (if this column does not say QC or QI: data.columns.task: null)",
}
"""By reason."""
PIECE_ROWS = 50_000
"""The rows of a slice that are Python objects at a time."""
UNKNOWN_LABEL = "unknown_label"
PARSED = tables.PAIRS.append(pa.field(UNKNOWN_LABEL, pa.bool_()))
"""Pairs on their way into shards, and whether what a row of dev or test has for a label is none."""
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Rejection:
    """Why a record is refused."""

    reason: str
    field: str | None = None
    detail: str | None = None


@dataclass
class Tally:
    """How many rows of which split and label, or reason, were kept and refused."""

    kept: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    """Kept rows by tag."""
    targets: list[str] = field(default_factory=list)
    """The targets of some kept rows."""
    unknown_labels: int = 0
    """Kept rows whose label is none, and not blank."""
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    """By split and reason, in words: the first such row that was met."""
    sampled: bool = False
    """Whether rows were counted from a sample."""

    def refuse(self, row: Mapping[str, Any], rows: int = 1) -> None:
        """Count a row of `tables.REJECTED_INPUT`, or so many that begin with it."""
        key = row["split"], row["reason"]
        self.refused[key] += rows
        if key not in self.examples:
            column = f", {row['field']}" if row["field"] else ""
            self.examples[key] = f"{row['file']}, line {row['line']}{column}: {row['detail'] or row['reason']}"
            self.examples[key] += HINTS.get(row["reason"], "")

    def reasons(self, *splits: str) -> Counter[str]:
        """Refused rows by reason, of some splits or all."""
        found: Counter[str] = Counter()
        for (split, reason), rows in self.refused.items():
            found[reason] += rows if split in (splits or SPLITS) else 0
        return +found

    @staticmethod
    def rows(of: Mapping[tuple[str, Any], int]) -> Counter[str]:
        """Rows by split."""
        found: Counter[str] = Counter()
        for (split, _), rows in of.items():
            found[split] += rows
        return found


def pair(record: Mapping[str, Any], recipe: Recipe, split: str, position: int) -> dict[str, Any] | Rejection:
    """One record of a split as a row of `tables.PAIRS`, or why not."""
    columns, spelling = recipe.data.columns, recipe.spelling
    if columns.task and record.get(columns.task) not in (None, "", recipe.task):
        return Rejection("unknown task", columns.task, f"{record[columns.task]!r} is not {recipe.task}")
    texts = {}
    for name, column in {"query": columns.query, "target": recipe.target_column}.items():
        value = record.get(column)
        text = "" if value is None else str(value)
        texts[name] = " ".join((spelling.target(text) if name == "target" else text).split())
        if unseen(texts[name]):
            return Rejection(f"missing {name}" if value is None else f"empty {name}", column)
        if isinstance(value, (dict, list)):
            return Rejection(f"{name} is not text", column)
    label = _label(record.get(columns.label), recipe.data.labels)
    if split == "train" and not isinstance(label, int):
        return replace(label or Rejection("missing label"), field=columns.label)
    identity = record.get(columns.id) if columns.id else rawfiles.row_id(position)
    if identity is None or str(identity) == "":
        return Rejection("missing id", columns.id)
    tag = record.get(columns.language) if columns.language else None
    tag = None if tag is None else str(tag)
    language = language_code(None if tag is None else spelling.tag(tag))
    pair_id = f"{recipe.task}-{split}-{identity}"
    return {
        "pair_id": pair_id, "task": recipe.task, "split": split, "part": None,
        "language": language, "language_raw": tag, **texts,
        "label": label if isinstance(label, int) else None, "query_en": None,
        "origin": "original", "source_id": pair_id, "group_id": stable_id(normalise(texts["query"])),
        "position": position, "similarity": None,
    }  # fmt: skip


def _label(value: Any, own: Mapping[str, int | None]) -> int | Rejection | None:
    text = "" if value is None else str(value).strip().lower()
    known = own or LABELS
    if not text or text in known:
        return known.get(text)
    legal = f"none of {', '.join(own)}" if own else "neither 0 nor 1"
    return Rejection("wrong label", detail=f"{value!r} is {legal}; data.labels says what others mean")


def _rows(part: Slice, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The records of a slice as rows of `tables.PAIRS`, or of `tables.REJECTED_INPUT`, which have a reason.

    Raises InputError for a file that lacks a column, unless it is of JSON Lines: see `_check_lines`.
    """
    unchecked = part.file.format != "jsonl"
    for row, record in rawfiles.records(part, recipe.raw_columns):
        if unchecked and not isinstance(record, Unreadable):
            _check_columns(part.file, record, recipe)
            unchecked = False
        yield _made(part.file, row, record, recipe)


def _made(file: RawFile, row: int, record: rawfiles.Record, recipe: Recipe) -> dict[str, Any]:
    """A record as a row of `tables.PAIRS`, or of `tables.REJECTED_INPUT`, which has a reason."""
    if isinstance(record, Unreadable):
        return _refused(file, row, None, record.reason, record.detail, record.raw)
    made = pair(record, recipe, file.split, rawfiles.position(file, row))
    if not isinstance(made, Rejection):
        label = None if made["label"] is not None else _label(record.get(recipe.data.columns.label), recipe.data.labels)
        return made | {UNKNOWN_LABEL: isinstance(label, Rejection)}
    return _refused(file, row, made.field, made.reason, made.detail, str(dict(record))[: rawfiles.RAW_CHARACTERS])


def _refused(file: RawFile, row: int, field: str | None, reason: str, detail: str | None, raw: str) -> dict[str, Any]:
    return {
        "split": file.split,
        "file": file.url,
        "line": row,
        "field": field,
        "reason": reason,
        "detail": detail,
        "raw": raw,
    }


def _parsed(batch: pa.Table, recipe: Recipe, folder: str, buckets: int) -> Iterator[pa.Table]:
    """Parse a slice on a Ray worker, piece by piece; pairs travel on, rejected rows are written at once."""
    number, part = (batch.column(name)[0].as_py() for name in ("number", "part"))
    rows = _rows(pickle.loads(part), recipe)
    for piece in count():
        some = list(islice(rows, PIECE_ROWS))
        if piece and not some:  # of a slice without rows a table without rows travels on, for its columns
            return
        if refused := [row for row in some if "reason" in row]:
            table = pa.Table.from_pylist(refused, schema=tables.REJECTED_INPUT)
            storage.write_parquet(storage.join(folder, "rejected", f"parse-{number:05d}-{piece:05d}.parquet"), table)
            reasons = dict(Counter(row["reason"] for row in refused))
            telemetry.of("ingest").add(Counts(len(refused), 0, reasons), shards=0)  # pairs count with their shards
        pairs = [row for row in some if "reason" not in row]
        numbers = hashes([row["pair_id"] for row in pairs]) % np.uint64(buckets)
        table = pa.Table.from_pylist(pairs, schema=PARSED)
        yield table.append_column(shards.BUCKET, pa.array(numbers.astype(np.int64)))


def _wanted(recipe: Recipe, split: str) -> dict[str, str]:
    """The columns that a split must have, by their keys of the recipe's data section."""
    names = recipe.data.columns
    wanted = {"columns.query": names.query, "columns.target": recipe.target_column, "columns.id": names.id}
    if split == "train":
        wanted["columns.label"] = names.label
    if names.language != LANGUAGE_COLUMN:
        wanted["columns.language"] = names.language
    return {key: column for key, column in wanted.items() if column}


def _check_columns(file: RawFile, there: Collection[str], recipe: Recipe) -> None:
    """Raise InputError where a file, or others of its split with it, lacks a column."""
    for key, column in _wanted(recipe, file.split).items():
        if column not in there:
            names = rawfiles.column_names(file) if file.format == "parquet" else there
            raise InputError(
                f"{file.url}: no row has the column {column!r}, only {sorted(names)}; "
                f"map it with data.{key} in the recipe"
            )


def _check_lines(files: Sequence[RawFile], recipe: Recipe) -> None:
    """Raise InputError where no JSON Lines of a split have a column; some may lack it, as many writers omit nulls."""
    for split in SPLITS:
        mine = [file for file in files if file.split == split and file.format == "jsonl"]
        records = chain.from_iterable(rawfiles.records(rawfiles.whole(file)) for file in mine)
        wanted, seen = set(_wanted(recipe, split).values()), set[str]()
        while not wanted <= seen and (found := next(records, None)):
            seen.update(() if isinstance(found[1], Unreadable) else found[1])
        if seen:
            _check_columns(mine[0], seen, recipe)


def _without_repeated_ids(
    table: pa.Table, name: str, folder: str, files: dict[tuple[str, int], str], column: str | None
) -> Counts:
    """Write a bucket of PARSED as a shard, in the order of pair ids, keeping the first row of each id in the input."""
    table = table.sort_by([("pair_id", "ascending"), ("position", "ascending")])
    ids = table.column("pair_id").to_numpy()
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    refused = []
    for row in table.filter(pa.array(~first)).to_pylist():
        number, _ = rawfiles.place(row["position"])
        refused.append(_repeated(RawFile(row["split"], number, files[row["split"], number], "jsonl"), row, column))
    rejected = pa.Table.from_pylist(refused, schema=tables.REJECTED_INPUT)
    kept = table.filter(pa.array(first))
    extra = {UNKNOWN_LABEL: float(pc.sum(kept.column(UNKNOWN_LABEL)).as_py() or 0)}
    return artifact.write_shard(folder, name, tables.conform(kept, tables.PAIRS), rejected, table.num_rows, extra)


def _repeated(file: RawFile, row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """A pair whose id another row before it has, as a row of `tables.REJECTED_INPUT`."""
    _, line = rawfiles.place(row["position"])
    identity = row["pair_id"].removeprefix(f"{row['task']}-{row['split']}-")
    return _refused(file, line, column, "duplicate id", identity, f"{row['query']} | {row['target']}")


def _files(recipe: Recipe, splits: Sequence[str] = SPLITS) -> list[RawFile]:
    data = recipe.data
    return [file for split in splits for file in rawfiles.find(split, getattr(data, split), data.format)]


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity: the columns, and the content of every raw file in order."""
    return {
        "task": recipe.task,
        "columns": recipe.data.columns.model_dump(exclude={"target"}),
        "target": recipe.target_column,
        "labels": recipe.data.labels,
        "spelling": recipe.spelling.model_dump(),
        "files": _content(_files(recipe), rawfiles.digest),
    }


def _content(files: Sequence[RawFile], digest: Callable[[str], str | None]) -> list[list[Any]]:
    hashes = storage.for_each(digest, [file.url for file in files])
    return [[file.split, file.number, file.format, one] for file, one in zip(files, hashes, strict=True)]


def expect_unchanged(recipe: Recipe, split: str, ingested: Artifact) -> None:
    """Raise InputError where the raw files of a split are no longer those that were ingested."""
    files = _files(recipe, [split])
    planned = [one for one in ingested.manifest.config["files"] if one[0] == split]
    if changed := _changed(files, planned):
        raise InputError(
            f"{changed}: changed after it was ingested, so no submission can be made of it: put back the file that was "
            "scored, or run the same command again, which scores the new one"
        )


def _expect_unchanged(files: Sequence[RawFile], planned: Sequence[Sequence[Any]]) -> None:
    """Raise InputError where files that were read are not those of the identity."""
    if changed := _changed(files, planned):
        raise InputError(f"{changed}: changed while it was read: run the same command again")


def _changed(files: Sequence[RawFile], planned: Sequence[Sequence[Any]]) -> str | None:
    """Some files that are others than those of an identity; null where all are the same.

    Of a local file whose size and time of change are the same, and of an S3 object, nothing is read for that.
    """
    now = _content(files, rawfiles.digest_now)
    if now == planned:
        return None
    named = [file.url for file, one in zip(files, now, strict=True) if one not in planned]
    return ", ".join(named[:3]) or "the list of raw files"


def _on_tasks(function: Callable[[Slice], Answer], parts: Sequence[Slice]) -> list[Answer]:
    """`rawfiles.Spread` over Ray's tasks."""
    return list(workers.OnRay().each("count rows", function, parts))


def run(context: Context) -> Outcome:
    """Read, validate and shard the raw files; raises InputError where the input as a whole is unusable."""
    import ray.data

    storage.remove_tree(context.folder)  # shards of a shuffle are whole together or not at all
    recipe = context.recipe
    files = _files(recipe)
    _check_lines(files, recipe)
    parts = rawfiles.numbered_slices(files, _on_tasks)
    if not parts:
        raise InputError(f"{', '.join(recipe.data.train)}: holds no rows; check the recipe's data section")
    rows = sum(storage.for_each(rawfiles.rows_about, files, lambda file: file.url))
    buckets = shards.bucket_count(rows, recipe.runtime.shard_rows)
    names = {(file.split, file.number): file.url for file in files}
    folder, column = context.folder, recipe.data.columns.id
    # Tasks rather than actors: a pool that holds every CPU would starve the shuffle behind it.
    numbered = [{"number": number, "part": pickle.dumps(part)} for number, part in enumerate(parts)]
    dataset = ray.data.from_items(numbered, override_num_blocks=len(parts)).map_batches(
        _parsed, fn_args=(recipe, folder, buckets), batch_size=1, batch_format="pyarrow"
    )

    def write(table: pa.Table, name: str) -> Counts:
        return _without_repeated_ids(table, name, folder, names, column)

    made = artifact.total(shards.shuffle(dataset, write, buckets=buckets, label="ingest"))
    _expect_unchanged(files, context.config["files"])
    return _account(context, made.rows_out, int(made.extra.get(UNKNOWN_LABEL, 0)))


def _expect_all(folder: str, made: int, there: int) -> None:
    """Raise StorageError where rows that nodes have written are not to be seen from here."""
    if there != made:
        raise StorageError(
            f"{folder}: {made} rows were written by the nodes, and {there} are there: the working folder must be one "
            "that all of them reach, a shared file system or s3://: name it by --workdir"
        )


def _kept_alike(url: str) -> list[dict[str, Any]]:
    """How many rows of a shard are of each split, label and language."""
    table = storage.read_parquet(url, ["split", "label", "language"])
    found: list[dict[str, Any]] = table.group_by(table.column_names).aggregate([([], "count_all")]).to_pylist()
    return found


def _refused_alike(url: str) -> list[tuple[dict[str, Any], int]]:
    """The first row of a file of refused ones of each split and reason, and how many there are."""
    table = storage.read_parquet(url, ["split", "reason", "file", "line", "field", "detail"])
    found = []
    for key in table.group_by(["split", "reason"]).aggregate([([], "count_all")]).to_pylist():
        alike = table.filter((pc.field("split") == key["split"]) & (pc.field("reason") == key["reason"]))
        found.append((alike.slice(0, 1).to_pylist()[0], key["count_all"]))
    return found


def _account(context: Context, made: int, unknown_labels: int = 0) -> Outcome:
    """Count what is there of the rows made, and stop where a split is empty, one-sided or has too many bad rows."""
    folder = context.folder
    tally = Tally(unknown_labels=unknown_labels)
    names = artifact.present_shards(folder)
    for row in chain.from_iterable(storage.for_each(_kept_alike, [storage.join(folder, name) for name in names])):
        tally.kept[row["split"], row["label"]] += row["count_all"]
        tally.languages[row["language"]] += row["count_all"]
    _expect_all(folder, made, tally.kept.total())
    rejected = storage.list_files(storage.join(folder, "rejected"))
    for row, alike in chain.from_iterable(storage.for_each(_refused_alike, rejected)):
        tally.refuse(row, alike)
    check(context.recipe, tally, storage.join(folder, "rejected"))
    some = storage.read_parquet(storage.join(folder, names[0]), ["target"]).slice(0, PATHS_LOOKED_AT)
    tally.targets = some.column("target").to_pylist()
    _say_doubts(context.recipe, tally)
    kept, refused = tally.rows(tally.kept), tally.rows(tally.refused)
    counts = Counts(kept.total() + refused.total(), kept.total(), dict(tally.reasons()))
    extra = {"splits": kept, "rejected_by_split": refused, "languages": tally.languages}
    return Outcome(counts, {name: dict(some) for name, some in extra.items()})


def preview(recipe: Recipe) -> Tally:
    """What the raw files tell without writing; raises InputError as a run would.

    Of a split with more than `PREVIEW_ROWS` rows it reads a sample and counts each row of it many times. Of repeated
    ids, those are seen that are among the first `IDS_REMEMBERED`.
    """
    tally, ids = Tally(), set[int]()
    files = _files(recipe)
    _check_lines(files, recipe)
    for part, times in _sample(files):
        tally.sampled |= times > 1
        for row in _rows(part, recipe):
            if "reason" not in row and hash(row["pair_id"]) in ids:
                row = _repeated(part.file, row, recipe.data.columns.id)
            if "reason" in row:
                tally.refuse(row, times)
                continue
            tally.kept[row["split"], row["label"]] += times
            tally.languages[row["language"]] += times
            tally.unknown_labels += times * row[UNKNOWN_LABEL]
            if len(tally.targets) < PATHS_LOOKED_AT:
                tally.targets.append(row["target"])
            if len(ids) < IDS_REMEMBERED:
                ids.add(hash(row["pair_id"]))
    check(recipe, tally)
    _say_doubts(recipe, tally)
    return tally


def _sample(files: Sequence[RawFile]) -> Iterator[tuple[Slice, int]]:
    for split in SPLITS:
        yield from rawfiles.sample([file for file in files if file.split == split], PREVIEW_ROWS)


def _say_doubts(recipe: Recipe, tally: Tally) -> None:
    """Say what is legal, and hardly meant."""
    _say_untagged(recipe, tally)
    _say_flat(recipe, tally)
    if tally.unknown_labels:
        legal = ", ".join(recipe.data.labels) or "0, 1"
        logs.tell(
            f"  ingest: {tally.unknown_labels} rows of dev and test have labels other than {legal}, which count as "
            "none; data.labels says what others mean, null if they mean none", level="WARNING",
        )  # fmt: skip


def _say_untagged(recipe: Recipe, tally: Tally) -> None:
    """Say so where the recipe expects language tags and no row has one."""
    column = recipe.data.columns.language
    if column and set(tally.languages) == {language_code(None)}:
        remedy = "name the column in data.columns.language, or set that to null if there is none"
        logs.tell(f"  ingest: no row has a language in the column {column!r}; {remedy}", level="WARNING")


def _say_flat(recipe: Recipe, tally: Tally) -> None:
    """Say so where most category paths have one level, and look as if something else joined more."""
    deep = sum(len(levels(DECIMAL_COMMA.sub("", target))) > 1 for target in tally.targets)
    if recipe.task != "QC" or 2 * deep > len(tally.targets):
        return
    found = {separator: sum(separator in target for target in tally.targets) for separator in OTHER_SEPARATORS}
    most = max(found, key=lambda separator: found[separator])
    if 2 * found[most] > len(tally.targets):
        logs.tell(
            f"  ingest: {deep or 'none'} of {len(tally.targets)} category paths looked at have a second level, and "
            f"{found[most]} hold {most!r}; if that joins levels, set data.level_separator: "
            f"{json.dumps(most, ensure_ascii=False)}", level="WARNING",
        )  # fmt: skip


def check(recipe: Recipe, tally: Tally, where: str | None = None) -> None:
    """Raise InputError where the input as a whole is unusable; `where` is the folder of the refused rows."""
    kept, refused = tally.rows(tally.kept), tally.rows(tally.refused)
    for split in SPLITS:
        rows = kept[split] + refused[split]
        if rows and refused[split] / rows > recipe.data.max_rejected_share:
            raise InputError(_too_many(recipe, tally, split, rows, where))
    _check_submission(recipe, tally, where)
    for split in SPLITS:
        if (named := getattr(recipe.data, split)) and not kept[split]:
            why = f" that can be used {_why(tally, split, where)}" if refused[split] else ""
            raise InputError(f"{', '.join(named)}: holds no rows{why}; check data.{split} in the recipe")
    labels = {label for split, label in tally.kept if split == "train" and label is not None}
    if len(labels) < 2:
        only = next(iter(labels))
        raise InputError(
            f"{', '.join(recipe.data.train)}: every label is {only}; a classifier and its threshold need both: "
            f"add rows labelled {1 - only}"
        )


def _check_submission(recipe: Recipe, tally: Tally, where: str | None) -> None:
    """Stop now, rather than after training, where rows of dev or test have no place in the submission."""
    default = recipe.data.rejected_prediction
    for (split, reason), rows in sorted(tally.refused.items()):
        if split != "train" and (default is None or reason in WITHOUT_PLACE):
            remedy = "mend them" + ("" if reason in WITHOUT_PLACE else ", or set data.rejected_prediction to 0 or 1")
            raise InputError(
                f"data.{split}: {rows} rows are rejected ({reason}) and would be missing from the submission"
                f"{_whereabouts(tally.examples[split, reason], where)}: {remedy}"
            )


def _too_many(recipe: Recipe, tally: Tally, split: str, rows: int, where: str | None) -> str:
    refused, limit = tally.reasons(split).total(), recipe.data.max_rejected_share
    return (
        f"data.{split}: {refused} of {rows} rows are rejected ({refused / rows:.1%}), more than "
        f"data.max_rejected_share {limit:.1%} allows {_why(tally, split, where)}: mend the file or raise the limit"
    )


def _why(tally: Tally, split: str, where: str | None) -> str:
    """The most frequent reasons for which rows of a split are refused, in brackets, and the first such row."""
    most = tally.reasons(split).most_common(5)
    why = ", ".join(f"{reason}: {count}" for reason, count in most)
    return f"({why}){_whereabouts(tally.examples[split, most[0][0]], where)}"


def _whereabouts(example: str, where: str | None) -> str:
    return f"; the first: {example}" + (f"; all are in {where}" if where else "")


STAGE = Stage("ingest", (), config, run, schema_version=7)
