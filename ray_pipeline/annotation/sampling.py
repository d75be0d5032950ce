"""Which translations people look at: seeded, over target languages and what the checks say, some refused ones too."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_pipeline.artifact import Artifact
from ray_pipeline.text import stable_id, stable_number

ACCEPTED = "accepted"
REFUSED_SHARE = 0.3
"""The share of a language's sample that a check speaks against: enough to judge the checks by."""
COLUMNS = ["translation_id", "source_language", "target_language", "text", "translation", "target", "label"]

Stratum = tuple[str, str]
"""Target language, and the check that speaks against the row, or `accepted`."""


@dataclass(frozen=True)
class Candidate:
    """A translation that people can look at."""

    key: str
    """Names it on a sheet, and tells nobody anything."""
    audit: str
    """Fingerprint of the audit that it stands in."""
    translation_id: str
    stratum: Stratum
    judged: str | None
    """The judge's verdict."""
    source_language: str
    text: str
    translation: str
    target: str
    label: int


def candidates(audited: Artifact) -> Iterator[Candidate]:
    """Every translation of a labelled pair, accepted or not."""
    for table in audited.tables([*COLUMNS, "failed", "verdict"]):
        yield from _candidates(audited, table, "failed")
    rejected = audited.rejected()
    if rejected is not None:
        yield from _candidates(audited, rejected.select([*COLUMNS, "verdict", "reason"]), "reason")


def _candidates(audited: Artifact, table: pa.Table, check: str) -> Iterator[Candidate]:
    fingerprint = audited.manifest.fingerprint
    for row in table.to_pylist():
        if row["label"] is not None:
            yield Candidate(
                stable_id(fingerprint, row["translation_id"]), fingerprint, row["translation_id"],
                (row["target_language"], row[check] or ACCEPTED), row["verdict"], row["source_language"],
                row["text"], row["translation"], row["target"], row["label"],
            )  # fmt: skip


def sizes(audited: Artifact) -> Counter[Stratum]:
    """Translations of labelled pairs in each stratum."""
    return Counter(one.stratum for one in candidates(audited))


def choose(audits: Sequence[Artifact], rows: int, seed: int) -> list[Candidate]:
    """So many translations: languages and audits have equal shares, and within each the checks have theirs.

    Strata take turns by the share of theirs that is taken, so that a small one leaves its part to the others, and more
    rows hold what fewer held.
    """
    turns: list[tuple[float, str, Candidate]] = []
    for audited in audits:
        ranked = _first(audited, rows, seed)
        refused = Counter(language for language, check in ranked if check != ACCEPTED)
        for (language, check), members in ranked.items():
            share = 1 - REFUSED_SHARE if check == ACCEPTED else REFUSED_SHARE / refused[language]
            turns += [((place + 0.5) / share, one.key, one) for place, one in enumerate(members)]
    return [one for *_, one in heapq.nsmallest(rows, turns, key=lambda turn: turn[:2])]


def _first(audited: Artifact, rows: int, seed: int) -> dict[Stratum, list[Candidate]]:
    """The first rows of each stratum, by chance; no more are kept than could be chosen."""

    def rank(one: Candidate) -> int:
        return stable_number(str(seed), one.key)

    found: dict[Stratum, list[Candidate]] = defaultdict(list)
    for one in candidates(audited):
        members = found[one.stratum]
        members.append(one)
        if len(members) > 4 * rows:
            found[one.stratum] = heapq.nsmallest(rows, members, key=rank)
    return {stratum: heapq.nsmallest(rows, members, key=rank) for stratum, members in sorted(found.items())}


def find(audits: Sequence[Artifact], keys: set[str]) -> dict[str, Candidate]:
    """The translations that keys of a sheet name."""
    return {one.key: one for audited in audits for one in candidates(audited) if one.key in keys}


def order(chosen: Sequence[Candidate], seed: int, annotator: int) -> list[Candidate]:
    """The rows in an annotator's own order, so that none is always the last one before supper."""
    return sorted(chosen, key=lambda one: stable_number(str(seed), str(annotator), one.key))


def sheet_row(one: Candidate) -> dict[str, Any]:
    """What people see: the texts and the claim, nothing of checks or models."""
    return {
        "id": one.key, "source_language": one.source_language, "source": one.text,
        "target_language": one.stratum[0], "translation": one.translation, "category_or_product": one.target,
        "relevance": "relevant" if one.label else "not relevant",
    }  # fmt: skip
