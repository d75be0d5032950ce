"""Which rows of a run are held against which: ids, groups, queries, known positives, roots, scores."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import reading
from ray_pipeline.reading import Slice
from ray_pipeline.text import normalise
from ray_pipeline.validation.buckets import Entries, Part, divided, judge, of_every_kind, repeated, rooted
from ray_pipeline.validation.check import Check, Checks
from ray_pipeline.validation.files import Table
from ray_pipeline.validation.rows import NEGATIVE
from ray_pipeline.workers import IN_PROCESS, Workers

Run = Mapping[str, Table]
"""The finished stages of a recipe."""
Of = Callable[[Slice], Iterator[Entries]]
"""What some rows have to say."""
PLACED = ("split", "dedupe", "negatives", "mix")
"""Stages of pairs whose labelled rows have a part."""
KNOWN = ("split", "dedupe")
"""Stages that know pairs: those that they refuse too."""
MINED = ("negatives", "mix")
TRANSLATED = ("translate", "audit")
SCORED = ("dedupe", "score", "evaluate")


def unique(table: Table, check: Check, workers: Workers = IN_PROCESS) -> None:
    """No id stands twice in an artifact; a vector's is its text's, in a role where there are several."""
    names = table.schema.names
    key = next((name for name in ("pair_id", "translation_id", "text_id") if name in names), None)
    if key is not None:
        columns = [key, "role"] if "role" in names else [key]
        parts = _parts([table], columns, partial(_ids, columns, table.manifest.stage))
        judge(check, table.manifest.rows_out, parts, repeated, workers)


def _ids(columns: Sequence[str], stage: str, piece: Slice) -> Iterator[Entries]:
    yield Entries(piece, pc.binary_join_element_wise(*[piece.table.column(name) for name in columns], " "), stage)


def _parts(tables: Iterable[Table], columns: Sequence[str], entries: Of) -> list[Part]:
    """What the shards of some tables have to say."""
    return _of_files([url for table in tables for url in table.shards], columns, entries)


def _of_files(urls: Iterable[str], columns: Sequence[str], entries: Of) -> list[Part]:
    return [Part(url, partial(_read, url, columns, entries)) for url in urls]


def _read(url: str, columns: Sequence[str], entries: Of) -> Iterator[Entries]:
    for piece in reading.slices(url, columns):
        yield from entries(piece)


def look(run: Run, checks: Checks, workers: Workers = IN_PROCESS) -> None:
    """Hold the rows of a recipe's stages against one another; what needs a stage that is not there is left out."""
    placed, translated = _of(run, PLACED), _of(run, TRANSLATED)
    judge(checks.groups, _rows(placed), _parts(placed, ["group_id", "part"], _groups), divided, workers)
    judge(checks.queries, _rows(placed), _parts(placed, ["query", "part"], _queries), divided, workers)
    if "dedupe" in run:
        kept = run["dedupe"]
        rows = kept.manifest.rows_out
        judge(checks.pairs, rows, _parts([kept], ["query", "target", "part"], _pairs), repeated, workers)
        if kept.manifest.config.get("remove_leaks"):
            columns = ["query", "target", "split", "part"]
            judge(checks.leaks, rows, _parts([kept], columns, _uses), divided, workers)
        mined = _of(run, MINED)
        rows = _rows([kept, *mined]) + sum(table.manifest.rows_rejected for table in _of(run, KNOWN))
        judge(checks.positives, rows, _known(run, mined), divided, workers)
    if "split" in run:
        parts = _family(run["split"], _of(run, PLACED[1:]), translated)
        judge(checks.roots, _rows([*placed, *translated]), parts, rooted, workers)
    if {"dedupe", "score"} <= set(run):
        wanted = [stage for stage in SCORED if stage in run]
        judge(checks.scored, _rows(_of(run, SCORED)), _scored(run), partial(of_every_kind, wanted), workers)


def _of(run: Run, stages: Sequence[str]) -> list[Table]:
    return [run[stage] for stage in stages if stage in run]


def _rows(tables: Iterable[Table]) -> int:
    return sum(table.manifest.rows_out for table in tables)


def _groups(piece: Slice) -> Iterator[Entries]:
    part = piece.table.column("part")
    keys = pc.if_else(pc.is_valid(part), piece.table.column("group_id"), None)
    yield Entries(piece, keys, pc.fill_null(part, ""))


def _queries(piece: Slice) -> Iterator[Entries]:
    part = piece.table.column("part")
    yield Entries(piece, _normal(piece.table.column("query"), pc.is_valid(part)), pc.fill_null(part, ""))


def _pairs(piece: Slice) -> Iterator[Entries]:
    """The pairs of the rows that have a part."""
    part = piece.table.column("part")
    yield Entries(piece, _pair_keys(piece.table, pc.is_valid(part)), pc.fill_null(part, ""))


def _uses(piece: Slice) -> Iterator[Entries]:
    """The pairs that are trained on, and those to predict."""
    trained = pc.fill_null(pc.equal(piece.table.column("part"), "train"), False)
    asked = pc.not_equal(piece.table.column("split"), "train")
    yield Entries(piece, _pair_keys(piece.table, pc.or_(trained, asked)), pc.if_else(trained, "train", "to predict"))


def _known(run: Run, mined: Iterable[Table]) -> list[Part]:
    """Pairs of every part, and of those that were refused, which are positives or may be; and what was mined."""
    refused = [url for table in _of(run, KNOWN) for url in table.refused]
    kept = _of_files([*run["dedupe"].shards, *refused], ["query", "target", "label"], _positives)
    return [*kept, *_parts(mined, ["query", "target", "origin"], _mined)]


def _positives(piece: Slice) -> Iterator[Entries]:
    positive = pc.fill_null(pc.equal(piece.table.column("label"), 1), True)  # of rows to predict nobody knows
    yield Entries(piece, _pair_keys(piece.table, positive), "known pair")


def _mined(piece: Slice) -> Iterator[Entries]:
    negative = pc.match_substring_regex(piece.table.column("origin"), NEGATIVE)
    yield Entries(piece, _pair_keys(piece.table, negative), "negative")


def _pair_keys(table: pa.Table, chosen: pa.ChunkedArray) -> pa.Array:
    """The normalised pair of each chosen row; null for the others."""
    texts = (_normal(table.column(name), chosen) for name in ("query", "target"))
    return pc.binary_join_element_wise(*texts, "\n")


def _normal(texts: pa.ChunkedArray, chosen: pa.ChunkedArray) -> pa.Array:
    """Normal forms of chosen texts, null for the others; a text that comes often is looked at once."""
    encoded = pc.if_else(chosen, texts, None).combine_chunks().dictionary_encode()
    return pa.array([normalise(text) for text in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)


def _family(split: Table, derived: Sequence[Table], translated: Iterable[Table]) -> list[Part]:
    """Roots by their id, derived rows by their root's; the values say of which part and group they are."""
    columns = ["pair_id", "source_id", "origin", "part", "group_id"]
    parts = _parts([split], columns, _roots)
    for table in derived:
        parts += _parts([table], columns, partial(_derived, table.manifest.stage))
    for table in translated:
        columns = ["source_id", "purpose", "group_id"]
        parts += _parts([table], columns, partial(_augmented, table.manifest.stage))
    return parts


def _roots(piece: Slice) -> Iterator[Entries]:
    yield Entries(piece, piece.table.column("pair_id"), "root", _of_group(piece.table))


def _derived(stage: str, piece: Slice) -> Iterator[Entries]:
    made = pc.not_equal(piece.table.column("origin"), "original")
    if stage == "dedupe":  # a translation may be the root of a negative
        keys = pc.if_else(made, piece.table.column("pair_id"), None)
        yield Entries(piece, keys, "root", _of_group(piece.table))
    keys = pc.if_else(made, piece.table.column("source_id"), None)
    yield Entries(piece, keys, stage, _of_group(piece.table, "train"))


def _augmented(stage: str, piece: Slice) -> Iterator[Entries]:
    made = pc.equal(piece.table.column("purpose"), "augment")
    keys = pc.if_else(made, piece.table.column("source_id"), None)
    yield Entries(piece, keys, stage, _of_group(piece.table, "train"))


def _of_group(table: pa.Table, part: str | None = None) -> pa.ChunkedArray:
    """`part group`: of the rows' own part, or of the one that they must come from."""
    parts = pc.fill_null(table.column("part"), "no part") if part is None else pa.repeat(part, table.num_rows)
    return pc.binary_join_element_wise(pc.cast(parts, pa.string()), table.column("group_id"), " group ")


def _scored(run: Run) -> list[Part]:
    """Rows to predict as they came in, rows outside train, and those that have a score and a prediction, or no score.

    A row without a score is refused with its reason, and so it is neither in the scores nor in the predictions.
    """
    stages = [stage for stage in ("ingest", *SCORED) if stage in run]
    columns = ["pair_id", "split", "part"]
    found = [part for stage in stages for part in _parts([run[stage]], columns, partial(_asked, stage))]
    for stage in SCORED[1:]:
        found += _of_files(run["score"].refused, columns, partial(_asked, stage))
    return found


def _asked(stage: str, piece: Slice) -> Iterator[Entries]:
    labelled = pc.fill_null(piece.table.column("part"), "")
    wanted = pc.not_equal(piece.table.column("split") if stage == "ingest" else labelled, "train")
    yield Entries(piece, pc.if_else(wanted, piece.table.column("pair_id"), None), stage)
