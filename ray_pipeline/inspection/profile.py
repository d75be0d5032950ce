"""What an artifact's rows are: counts, histograms, vectors, and a few examples; the rows are never held at once."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import reading
from ray_pipeline.artifact import Artifact, Manifest
from ray_pipeline.inspection.histogram import Histogram
from ray_pipeline.workers import IN_PROCESS, Workers

COUNTED = (
    "task", "purpose", "language", "source_language", "target_language", "origin", "label", "part", "split",
    "role", "band", "method", "prediction", "truncated", "contradicted", "failed", "mended", "verdict",
)  # fmt: skip
"""Columns of few values, which are counted where a table has them."""
MEASURED = {
    "similarity": ("origin", "target_language"), "back_similarity": ("target_language",), "score": ("part", "split"),
}  # fmt: skip
"""Columns of figures, and the columns, of which the first that a table has divides their histograms."""
COMPOSED = ["language", "origin", "label"]
"""Columns by which rows are counted together."""
LONGEST = 160
"""Characters of an example's text that are shown."""
SHOWN_NUMBERS = 4
"""How many numbers of a vector an example shows."""
ABSENT = "(none)"


@dataclass(frozen=True)
class Vectors:
    """What a column of vectors holds."""

    dimension: int
    norms: Histogram


@dataclass(frozen=True)
class Example:
    """One row, its texts shortened."""

    file: str
    row: int
    """From 0, in its file."""
    values: dict[str, str]


@dataclass(frozen=True)
class Profile:
    """What is shown of an artifact."""

    url: str
    manifest: Manifest
    schema: list[tuple[str, str, bool]]
    """(column, type, whether it may be null)."""
    rows: int
    rejected: int
    counts: dict[str, Counter[str]]
    """Rows by value, of each column of few values."""
    composition: list[tuple[str, str, int, int]]
    """(language, origin, rows labelled 1, rows labelled 0) of labelled rows."""
    reasons: Counter[str]
    histograms: dict[str, dict[str, Histogram]]
    """By column, and there by the group of rows."""
    vectors: dict[str, Vectors]
    examples: list[Example]
    rejected_examples: list[Example]


@dataclass(frozen=True)
class _Wanted:
    """What is looked at in a table of some columns."""

    counted: Sequence[str]
    composed: bool
    """Whether rows are counted by language, origin and label together."""
    measured: Sequence[tuple[str, str | None]]
    """(column, the column that divides its histograms)."""
    vectors: Sequence[str]

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        measured = [name for pair in self.measured for name in pair if name is not None]
        return list(dict.fromkeys([*self.counted, *(COMPOSED if self.composed else ()), *measured, *self.vectors]))


@dataclass(frozen=True)
class _Tally:
    """What was counted of some rows; tallies add up."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    composition: Counter[tuple[str, str, int | None]] = field(default_factory=Counter)
    histograms: dict[str, dict[str, Histogram]] = field(default_factory=dict)
    norms: dict[str, Histogram] = field(default_factory=dict)

    def add(self, other: "_Tally") -> None:
        """Count the rows of another, too."""
        for column, counted in other.counts.items():
            self.counts[column].update(counted)
        self.composition.update(other.composition)
        for column, groups in other.histograms.items():
            _merge(self.histograms.setdefault(column, {}), groups)
        _merge(self.norms, other.norms)


def _merge(into: dict[str, Histogram], more: Mapping[str, Histogram]) -> None:
    for name, histogram in more.items():
        into.setdefault(name, Histogram()).merge(histogram)


def profile(item: Artifact, examples: int = 5, seed: int = 0, workers: Workers = IN_PROCESS) -> Profile:
    """Look at an artifact; each shard is read once, a slice at a time."""
    schema = reading.footer(item.shards[0])[1] if item.shards else pa.schema([])
    refused = dict.fromkeys(reading.rejected_files(item), 0)
    refused.update(zip(refused, workers.each("rejected rows", _length, list(refused)), strict=True))
    wanted = _wanted(schema)
    found = _tally(item.manifest.stage, wanted, item.shards, workers)
    reasons = _tally("reasons", _Wanted(["reason"], False, [], []), list(refused), workers).counts
    return Profile(
        url=item.url,
        manifest=item.manifest,
        schema=[(field.name, str(field.type), field.nullable) for field in schema],
        rows=sum(item.manifest.shards.values()),
        rejected=sum(refused.values()),
        counts={name: found.counts[name] for name in wanted.counted},
        composition=_composition(found.composition),
        reasons=reasons["reason"],
        histograms=_histograms(wanted, found),
        vectors={
            name: Vectors(schema.field(name).type.list_size, found.norms.get(name, Histogram()))
            for name in wanted.vectors
        },
        examples=_examples(dict(zip(item.shards, item.manifest.shards.values(), strict=True)), examples, seed, workers),
        rejected_examples=_examples(refused, examples, seed, workers),
    )


def _length(url: str) -> int:
    return reading.footer(url)[0]


def _wanted(schema: pa.Schema) -> _Wanted:
    names = schema.names
    measured = [
        (column, next((name for name in groups if name in names), None))
        for column, groups in MEASURED.items()
        if column in names
    ]
    vectors = [field.name for field in schema if _is_vector(field)]
    return _Wanted([name for name in COUNTED if name in names], set(COMPOSED) <= set(names), measured, vectors)


def _tally(label: str, wanted: _Wanted, urls: Sequence[str], workers: Workers) -> _Tally:
    """What is counted of some files, added up in their order."""
    found = _Tally()
    for one in workers.each(label, partial(_tally_of, wanted), urls if wanted.columns else []):
        found.add(one)
    return found


def _tally_of(wanted: _Wanted, url: str) -> _Tally:
    found = _Tally()
    for piece in reading.slices(url, wanted.columns):
        table = piece.table
        for column in wanted.counted:
            for row in pc.value_counts(table.column(column)).to_pylist():
                found.counts[column][ABSENT if row["values"] is None else str(row["values"])] += row["counts"]
        if wanted.composed:
            for row in table.group_by(COMPOSED).aggregate([([], "count_all")]).to_pylist():
                found.composition[row["language"], row["origin"], row["label"]] += row["count_all"]
        for column, by in wanted.measured:
            _measure(found.histograms.setdefault(column, {}), table, column, by)
        for column in wanted.vectors if len(piece) else ():
            found.norms.setdefault(column, Histogram()).add(np.linalg.norm(matrix(table.column(column)), axis=1))
    return found


def _composition(found: Mapping[tuple[str, str, int | None], int]) -> list[tuple[str, str, int, int]]:
    """The counts of labelled rows, the languages with most of them first."""
    labelled = {key: rows for key, rows in found.items() if key[2] is not None}
    order = Counter[str]()
    for (language, _, _), rows in labelled.items():
        order[language] += rows
    pairs = {(language, origin) for language, origin, _ in labelled}
    return [
        (language, origin, labelled.get((language, origin, 1), 0), labelled.get((language, origin, 0), 0))
        for language, origin in sorted(
            pairs, key=lambda pair: (-order[pair[0]], pair[0], pair[1] != "original", pair[1])
        )
    ]


def _histograms(wanted: _Wanted, found: _Tally) -> dict[str, dict[str, Histogram]]:
    """The histogram of each group that has one, for each column that has a value."""
    measured = ((f"{column} by {by}" if by else column, found.histograms.get(column)) for column, by in wanted.measured)
    return {title: dict(sorted(groups.items())) for title, groups in measured if groups}


def _measure(into: dict[str, Histogram], table: pa.Table, column: str, by: str | None) -> None:
    """Count a slice's values by group; null stands for no value."""
    table = table.select([column, by] if by else [column])
    table = table.filter(pc.is_valid(table.column(column)))
    values = table.column(column).to_numpy()
    groups = table.column(by) if by else pa.chunked_array([pa.repeat("all", len(values))])
    encoded = pc.fill_null(groups, ABSENT).combine_chunks().dictionary_encode()
    numbers = encoded.indices.to_numpy()
    for number, group in enumerate(encoded.dictionary.to_pylist()):
        into.setdefault(group, Histogram()).add(values[numbers == number])


def _is_vector(field: pa.Field) -> bool:
    return bool(pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type))


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of vectors as float32 `[n, d]`."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    found: npt.NDArray[np.float32] = flat.astype(np.float32).reshape(len(column), -1)
    return found


def _examples(lengths: Mapping[str, int], wanted: int, seed: int, workers: Workers) -> list[Example]:
    """Some rows drawn by a seed from all files together, in their order; `lengths` are their rows."""
    total = sum(lengths.values())
    drawn = sorted(random.Random(seed).sample(range(total), min(wanted, total)))
    chosen: dict[str, list[int]] = {}
    before = 0
    for url, length in lengths.items():
        mine = [number - before for number in drawn if before <= number < before + length]
        before += length
        if mine:
            chosen[url] = mine
    found = workers.each("examples", partial(_rows, chosen), list(chosen))
    return [example for examples in found for example in examples]


def _rows(chosen: Mapping[str, Sequence[int]], url: str) -> list[Example]:
    found, numbers = [], chosen[url]
    for piece in reading.slices(url, rows=1024):
        mine = [number for number in numbers if piece.start <= number < piece.start + piece.table.num_rows]
        for number in mine:
            (row,) = piece.table.slice(number - piece.start, 1).to_pylist()
            found.append(Example(url.rsplit("/", 1)[-1], number, _shown(row)))
        if piece.start + piece.table.num_rows > numbers[-1]:
            break
    return found


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: shortened(value) for name, value in row.items() if value is not None}


def shortened(value: Any) -> str:
    """A value as one short line: long texts cut, vectors by their first numbers, control characters made visible."""
    if isinstance(value, list):
        first = ", ".join(str(one) if isinstance(one, int) else f"{one:.3g}" for one in value[:SHOWN_NUMBERS])
        return f"[{first}{', …' if len(value) > SHOWN_NUMBERS else ''}] ({len(value)} numbers)"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    # What strangers wrote must not steer the reader's terminal.
    visible = "".join(c if c.isprintable() or c in "\u200c\u200d" else f"\\u{ord(c):04x}" for c in text[: LONGEST + 1])
    return visible if len(text) <= LONGEST else f"{visible[:LONGEST]}… ({len(text):,} characters)"
