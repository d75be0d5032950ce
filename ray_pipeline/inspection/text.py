"""A profile as text for the terminal."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_pipeline.duration import duration
from ray_pipeline.inspection.histogram import Histogram
from ray_pipeline.inspection.profile import Example, Profile, shortened
from ray_pipeline.wording import count, money, share

MOST_VALUES = 20
"""Values of one column that are listed; the rest is summed up."""
BAR = 40
"""Letters of the longest bar."""


def show(found: Profile) -> str:
    """The whole profile."""
    return "\n".join(_lines(found))


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines, the first row underlined as headings; `right` numbers the columns aligned right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
        if number == 0:
            lines.append("  " + "  ".join("-" * width for width in widths))
    return lines


def top(values: Counter[str], most: int = MOST_VALUES) -> list[tuple[str, int]]:
    """The most frequent values with their rows, and how many the others have together."""
    ordered = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = ordered[most:]
    return ordered[:most] + ([(f"{len(rest)} others", sum(rows for _, rows in rest))] if rest else [])


def facts(found: Profile) -> list[tuple[str, str]]:
    """What the manifest says, line by line."""
    manifest = found.manifest
    rows = f"{manifest.rows_in:,} in, {manifest.rows_out:,} out, {manifest.rows_rejected:,} rejected"
    lines = [
        ("folder", found.url),
        ("fingerprint", manifest.fingerprint),
        ("rows", rows),
        ("shards", _shards(found)),
        ("time", duration(manifest.seconds)),
    ]
    if manifest.requests:
        tokens = ", ".join(f"{number:,} {kind}" for kind, number in manifest.tokens.items())
        lines.append(("requests", f"{manifest.requests:,} ({tokens} tokens; {money(manifest.usd)})"))
    lines += [(f"input {name}", value) for name, value in manifest.inputs.items()]
    return lines + [(key, literal(value)) for key, value in manifest.extra.items()]


def _shards(found: Profile) -> str:
    rows = found.manifest.shards.values()
    each = f", {min(rows):,} to {max(rows):,} each" if len(rows) > 1 else ""
    return f"{len(rows):,} with {found.rows:,} rows{each}, {found.manifest.bytes / 1e6:,.3f} MB"


def literal(value: Any) -> str:
    """A literal of the manifest on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(found: Profile) -> Iterator[str]:
    manifest = found.manifest
    yield f"{manifest.stage} {manifest.fingerprint}"
    yield from _section("Facts", _pairs(facts(found)))
    config = [(key, shortened(literal(value))) for key, value in manifest.config.items()]
    yield from _section("Config", _pairs(config))
    yield from _section("Schema", _schema(found))
    for name, values in found.counts.items():
        yield from _section(f"Rows by {name}", _counted(name, values, found.rows))
    if found.rejected:
        yield from _section("Rejected", _counted("reason", found.reasons, found.rejected))
    for title, groups in found.histograms.items():
        for group, histogram in groups.items():
            yield from _section(f"{title}: {group}", _histogram(histogram))
    for name, vectors in found.vectors.items():
        title = f"Norms of {name}, {vectors.dimension} numbers each"
        yield from _section(title, _histogram(vectors.norms))
    yield from _section("Examples", _examples(found.examples))
    yield from _section("Rejected examples", _examples(found.rejected_examples))


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield from ("", title, *lines)


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"  {name.ljust(width)}  {value}" for name, value in pairs]


def _schema(found: Profile) -> list[str]:
    rows = [(name, type_, "null allowed" if nullable else "") for name, type_, nullable in found.schema]
    return aligned([("column", "type", ""), *rows]) if rows else []


def _counted(name: str, values: Counter[str], total: int) -> list[str]:
    rows = [(value, count(rows), share(rows, total)) for value, rows in top(values)]
    return aligned([(name, "rows", "share"), *rows], right=(1, 2)) if rows else []


def _histogram(found: Histogram) -> list[str]:
    bars = found.bars()
    most = max((rows for _, _, rows in bars), default=1)
    digits = 4 if bars and bars[0][1] - bars[0][0] < 0.01 else 2
    lines = [
        f"  {low:>9.{digits}f} to {high:>9.{digits}f}  {rows:>11,}  {'█' * -(-BAR * rows // most)}"
        for low, high, rows in bars
    ]
    words = f"  {found.rows:,} values"
    words += f" from {found.low:.4f} to {found.high:.4f}, mean {found.mean:.4f}" if found.rows else ""
    words += f"; {found.not_finite:,} NOT FINITE" if found.not_finite else ""
    return [words, *lines]


def _examples(rows: Sequence[Example]) -> list[str]:
    return [line for row in rows for line in [f"  {row.file}, row {row.row}", *_values(row.values)]]


def _values(values: Mapping[str, str]) -> list[str]:
    return [f"    {name:<16} {value}" for name, value in values.items()]
