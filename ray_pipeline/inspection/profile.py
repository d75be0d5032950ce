"""What an artifact's rows are: counts, histograms, vectors, and a few examples; the rows are never held at once."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import reading, storage
from ray_pipeline.artifact import Artifact, Manifest
from ray_pipeline.inspection.histogram import Histogram

COUNTED = (
    "task", "purpose", "language", "source_language", "target_language", "origin", "label", "part", "split",
    "role", "band", "method", "prediction", "truncated", "contradicted", "failed", "mended", "verdict",
)  # fmt: skip
"""Columns of few values, which are counted where a table has them."""
MEASURED = {
    "similarity": ("origin", "target_language"), "back_similarity": ("target_language",), "score": ("part", "split"),
}  # fmt: skip
"""Columns of figures, and the columns, of which the first that a table has divides their histograms."""
LONGEST = 160
"""Characters of an example's text that are shown."""
SHOWN_NUMBERS = 4
"""Of a vector in an example."""
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


def profile(item: Artifact, examples: int = 5, seed: int = 0) -> Profile:
    """Look at an artifact, one column of one slice of one shard at a time."""
    schema = reading.footer(item.shards[0])[1] if item.shards else pa.schema([])
    refused = reading.rejected_files(item)
    return Profile(
        url=item.url,
        manifest=item.manifest,
        schema=[(field.name, str(field.type), field.nullable) for field in schema],
        rows=sum(item.manifest.shards.values()),
        rejected=sum(rows for rows, _ in storage.for_each(reading.footer, refused)),
        counts=_counts(item.shards, [name for name in COUNTED if name in schema.names]),
        composition=_composition(item.shards) if {"language", "origin", "label"} <= set(schema.names) else [],
        reasons=_counts(refused, ["reason"])["reason"],
        histograms=_histograms(item.shards, schema),
        vectors={field.name: _vectors(item.shards, field) for field in schema if _is_vector(field)},
        examples=_examples(item.shards, examples, seed),
        rejected_examples=_examples(refused, examples, seed),
    )


def _counts(urls: Sequence[str], columns: Sequence[str]) -> dict[str, Counter[str]]:
    """Rows by value, of each column; each file is read once, several at a time."""
    found: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for one in storage.for_each(partial(_counts_of, columns), urls if columns else []):
        for column, counted in one.items():
            found[column].update(counted)
    return found


def _counts_of(columns: Sequence[str], url: str) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for piece in reading.slices(url, columns):
        for column in columns:
            for row in pc.value_counts(piece.table.column(column)).to_pylist():
                found[column][ABSENT if row["values"] is None else str(row["values"])] += row["counts"]
    return found


def _composition(urls: Sequence[str]) -> list[tuple[str, str, int, int]]:
    keys = ["language", "origin", "label"]
    found: Counter[tuple[str, str, int]] = Counter()
    for url in urls:
        for piece in reading.slices(url, keys):
            for row in piece.table.group_by(keys).aggregate([([], "count_all")]).to_pylist():
                if row["label"] is not None:
                    found[row["language"], row["origin"], row["label"]] += row["count_all"]
    order = Counter[str]()
    for (language, _, _), rows in found.items():
        order[language] += rows
    pairs = {(language, origin) for language, origin, _ in found}
    return [
        (language, origin, found[language, origin, 1], found[language, origin, 0])
        for language, origin in sorted(
            pairs, key=lambda pair: (-order[pair[0]], pair[0], pair[1] != "original", pair[1])
        )
    ]


def _histograms(urls: Sequence[str], schema: pa.Schema) -> dict[str, dict[str, Histogram]]:
    found = {}
    for column, groups in MEASURED.items():
        if column in schema.names:
            by = next((name for name in groups if name in schema.names), None)
            measured = _measure(urls, column, by)
            if measured:
                found[f"{column} by {by}" if by else column] = measured
    return found


def _measure(urls: Sequence[str], column: str, by: str | None) -> dict[str, Histogram]:
    """The histogram of each group that has a value; null stands for no value."""
    found: dict[str, Histogram] = defaultdict(Histogram)
    for url in urls:
        for piece in reading.slices(url, [column, by] if by else [column]):
            table = piece.table.filter(pc.is_valid(piece.table.column(column)))
            values = table.column(column).to_numpy()
            groups = _texts(table.column(by)) if by else np.full(len(values), "all")
            for group in np.unique(groups).tolist():
                found[group].add(values[groups == group])
    return dict(sorted(found.items()))


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.str_]:
    return np.array([ABSENT if value is None else str(value) for value in column.to_pylist()], dtype=np.str_)


def _is_vector(field: pa.Field) -> bool:
    return bool(pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type))


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of vectors as float32 `[n, d]`."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    found: npt.NDArray[np.float32] = flat.astype(np.float32).reshape(len(column), -1)
    return found


def _vectors(urls: Sequence[str], field: pa.Field) -> Vectors:
    norms = Histogram()
    for url in urls:
        for piece in reading.slices(url, [field.name]):
            if piece.table.num_rows:
                norms.add(np.linalg.norm(matrix(piece.table.column(field.name)), axis=1))
    return Vectors(field.type.list_size, norms)


def _examples(urls: Sequence[str], wanted: int, seed: int) -> list[Example]:
    """Some rows drawn by a seed from all files together, in their order."""
    rows = dict(zip(urls, (length for length, _ in storage.for_each(reading.footer, urls)), strict=True))
    total = sum(rows.values())
    drawn = sorted(random.Random(seed).sample(range(total), min(wanted, total)))
    found, before = [], 0
    for url, length in rows.items():
        mine = [number - before for number in drawn if before <= number < before + length]
        found += _rows(url, mine) if mine else []
        before += length
    return found


def _rows(url: str, numbers: Sequence[int]) -> list[Example]:
    found = []
    for piece in reading.slices(url, rows=1024):
        mine = [number for number in numbers if piece.start <= number < piece.start + piece.table.num_rows]
        for number in mine:
            (row,) = piece.table.slice(number - piece.start, 1).to_pylist()
            found.append(Example(url.rsplit("/", 1)[-1], number, _shown(row)))
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
