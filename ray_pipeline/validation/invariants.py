"""Which rows of a run are held against which: ids, groups, queries, known positives, roots, scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import reading
from ray_pipeline.errors import CorruptArtifactError
from ray_pipeline.text import normalise
from ray_pipeline.validation.buckets import Entries, divided, judge, of_every_kind, repeated, rooted
from ray_pipeline.validation.check import Check, Checks
from ray_pipeline.validation.files import Table
from ray_pipeline.validation.rows import NEGATIVE

Run = Mapping[str, Table]
"""The finished stages of a recipe."""
PLACED = ("split", "dedupe", "negatives", "mix")
"""Stages of pairs whose labelled rows have a part."""
KNOWN = ("split", "dedupe")
"""Stages that know pairs: those that they refuse too."""
MINED = ("negatives", "mix")
TRANSLATED = ("translate", "audit")
SCORED = ("dedupe", "score", "evaluate")


def unique(table: Table, check: Check) -> None:
    """No id stands twice in an artifact; a vector's is its text's, in a role where there are several."""
    names = table.schema.names
    key = next((name for name in ("pair_id", "translation_id", "text_id") if name in names), None)
    if key is not None:
        columns = [key, "role"] if "role" in names else [key]
        judge(check, table.manifest.rows_out, _ids(table, columns), repeated)


def _ids(table: Table, columns: Sequence[str]) -> Iterator[Entries]:
    for piece in _slices(table, columns):
        keys = pc.binary_join_element_wise(*[piece.table.column(name) for name in columns], " ")
        yield Entries(piece, keys, table.manifest.stage)


def _slices(table: Table, columns: Sequence[str]) -> Iterator[reading.Slice]:
    for url in table.shards:
        yield from reading.slices(url, columns)


def look(run: Run, checks: Checks) -> None:
    """Hold the rows of a recipe's stages against one another; what needs a stage that is not there is left out."""
    placed, translated = _of(run, PLACED), _of(run, TRANSLATED)
    judge(checks.groups, _rows(placed), _groups(placed), divided)
    judge(checks.queries, _rows(placed), _queries(placed), divided)
    if "dedupe" in run:
        kept = run["dedupe"]
        judge(checks.pairs, kept.manifest.rows_out, _pairs(kept), repeated)
        if kept.manifest.config.get("remove_leaks"):
            judge(checks.leaks, kept.manifest.rows_out, _uses(kept), divided)
        mined = _of(run, MINED)
        rows = _rows([run["dedupe"], *mined]) + sum(table.manifest.rows_rejected for table in _of(run, KNOWN))
        judge(checks.positives, rows, _known(run, mined), divided)
    if "split" in run:
        derived = _of(run, PLACED[1:])
        entries = _family(run["split"], derived, translated)
        judge(checks.roots, _rows([*placed, *translated]), entries, rooted)
    if {"dedupe", "score"} <= set(run):
        judge(checks.scored, _rows(_of(run, SCORED)), _scored(run), of_every_kind([s for s in SCORED if s in run]))


def _of(run: Run, stages: Sequence[str]) -> list[Table]:
    return [run[stage] for stage in stages if stage in run]


def _rows(tables: Iterable[Table]) -> int:
    return sum(table.manifest.rows_out for table in tables)


def _groups(placed: Iterable[Table]) -> Iterator[Entries]:
    for table in placed:
        for piece in _slices(table, ["group_id", "part"]):
            part = piece.table.column("part")
            keys = pc.if_else(pc.is_valid(part), piece.table.column("group_id"), None)
            yield Entries(piece, keys, pc.fill_null(part, ""))


def _queries(placed: Iterable[Table]) -> Iterator[Entries]:
    for table in placed:
        for piece in _slices(table, ["query", "part"]):
            part = piece.table.column("part")
            pairs = zip(piece.table.column("query").to_pylist(), part.to_pylist(), strict=True)
            keys = [None if part is None else normalise(query) for query, part in pairs]
            yield Entries(piece, keys, pc.fill_null(part, ""))


def _pairs(kept: Table) -> Iterator[Entries]:
    """The pairs of the rows that have a part."""
    for piece in _slices(kept, ["query", "target", "part"]):
        part = piece.table.column("part")
        yield Entries(piece, _pair_keys(piece.table, pc.is_valid(part)), pc.fill_null(part, ""))


def _uses(kept: Table) -> Iterator[Entries]:
    """The pairs that are trained on, and those to predict."""
    for piece in _slices(kept, ["query", "target", "split", "part"]):
        trained = pc.fill_null(pc.equal(piece.table.column("part"), "train"), False)
        asked = pc.not_equal(piece.table.column("split"), "train")
        yield Entries(
            piece, _pair_keys(piece.table, pc.or_(trained, asked)), pc.if_else(trained, "train", "to predict")
        )


def _known(run: Run, mined: Iterable[Table]) -> Iterator[Entries]:
    """Pairs of every part, and of those that were refused, which are positives or may be; and what was mined."""
    columns = ["query", "target", "label"]
    kept = _slices(run["dedupe"], columns)
    for piece in chain(kept, *(_refused(table, columns) for table in _of(run, KNOWN))):
        positive = pc.fill_null(pc.equal(piece.table.column("label"), 1), True)  # of rows to predict nobody knows
        yield Entries(piece, _pair_keys(piece.table, positive), "known pair")
    for table in mined:
        for piece in _slices(table, ["query", "target", "origin"]):
            negative = pc.match_substring_regex(piece.table.column("origin"), NEGATIVE)
            yield Entries(piece, _pair_keys(piece.table, negative), "negative")


def _refused(table: Table, columns: Sequence[str]) -> Iterator[reading.Slice]:
    for url in reading.rejected_files(table.artifact):
        with suppress(CorruptArtifactError):  # noted where files are looked at
            yield from reading.slices(url, columns)


def _pair_keys(table: pa.Table, chosen: pa.ChunkedArray) -> list[str | None]:
    """The normalised pair of each chosen row; null for the others."""
    texts = (table.column("query").to_pylist(), table.column("target").to_pylist(), chosen.to_pylist())
    return [f"{normalise(q)}\n{normalise(t)}" if wanted else None for q, t, wanted in zip(*texts, strict=True)]


def _family(split: Table, derived: Sequence[Table], translated: Iterable[Table]) -> Iterator[Entries]:
    """Roots by their id, derived rows by their root's; the values say of which part and group they are."""
    columns = ["pair_id", "source_id", "origin", "part", "group_id"]
    for piece in _slices(split, columns):
        yield Entries(piece, piece.table.column("pair_id"), "root", _of_group(piece.table))
    for table in derived:
        for piece in _slices(table, columns):
            made = pc.not_equal(piece.table.column("origin"), "original")
            if table.manifest.stage == "dedupe":  # a translation may be the root of a negative
                keys = pc.if_else(made, piece.table.column("pair_id"), None)
                yield Entries(piece, keys, "root", _of_group(piece.table))
            keys = pc.if_else(made, piece.table.column("source_id"), None)
            yield Entries(piece, keys, table.manifest.stage, _of_group(piece.table, "train"))
    for table in translated:
        for piece in _slices(table, ["source_id", "purpose", "group_id"]):
            made = pc.equal(piece.table.column("purpose"), "augment")
            keys = pc.if_else(made, piece.table.column("source_id"), None)
            yield Entries(piece, keys, table.manifest.stage, _of_group(piece.table, "train"))


def _of_group(table: pa.Table, part: str | None = None) -> pa.ChunkedArray:
    """`part group`: of the rows' own part, or of the one that they must come from."""
    parts = pc.fill_null(table.column("part"), "no part") if part is None else pa.repeat(part, table.num_rows)
    return pc.binary_join_element_wise(pc.cast(parts, pa.string()), table.column("group_id"), " group ")


def _scored(run: Run) -> Iterator[Entries]:
    """Rows to predict as they came in, rows outside train, and those that have a score and a prediction."""
    for stage in ("ingest", *SCORED):
        for piece in _slices(run[stage], ["pair_id", "split", "part"]) if stage in run else ():
            labelled = pc.fill_null(piece.table.column("part"), "")
            wanted = pc.not_equal(piece.table.column("split") if stage == "ingest" else labelled, "train")
            yield Entries(piece, pc.if_else(wanted, piece.table.column("pair_id"), None), stage)
