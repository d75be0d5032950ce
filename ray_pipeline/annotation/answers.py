"""What people have filled in: checked strictly, kept as a small table per annotator below the working folder."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_pipeline import artifact, storage, tables
from ray_pipeline.annotation.sampling import Candidate
from ray_pipeline.annotation.sheets import Column, Line, clean
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import InputError
from ray_pipeline.text import normalise, stable_id

QUESTIONS = ("meaning_kept", "label_holds")
ANSWERS = {"yes": True, "no": False, "": None}
REMEDY = "delete it and read the annotator's sheet again"
COLUMNS = (
    Column("id", 19),
    Column("source_language", 10),
    Column("source", 34),
    Column("target_language", 10),
    Column("translation", 34),
    Column("category_or_product", 42),
    Column("relevance", 13),
    Column("meaning_kept", 14, fill=True, choices=("yes", "no")),
    Column("label_holds", 14, fill=True, choices=("yes", "no")),
    Column("comment", 40, fill=True),
)
GUIDE = (
    "Each row holds a search query of an online shop (source) and its translation.",
    "",
    "meaning_kept: yes, if somebody who types the translation wants the same things as somebody who types the source. "
    "Word order, spelling, synonyms and the writing of brand names do not matter. no, if something was lost, added or "
    "changed, or if the translation is not in its language.",
    "",
    "label_holds: for the source, the shop has noted whether the category or product is relevant. yes, if that note "
    "is as true of the translation as it is of the source; no, if the translation makes it false. You need not agree "
    "with the note: only ask whether the translation changes it.",
    "",
    "Leave a cell empty where you cannot tell. A comment is welcome, never needed.",
    "Please do not talk about rows with the others before all are done, and change nothing but these three columns.",
)


def read(url: str, lines: Sequence[Line], known: Mapping[str, Candidate]) -> dict[str, list[dict[str, Any]]]:
    """The answers of a sheet as rows of `tables.ANNOTATIONS`, by the audit's fingerprint.

    Raises InputError for an id that no audit knows or that comes twice, a text that is not the exported one, an answer
    other than yes and no, and a sheet without any answer.
    """
    twice = [key for key, count in Counter(line.cells["id"] for line in lines).items() if count > 1]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        where = f"{url}, row {line.number}"
        one = known.get(line.cells["id"])
        if one is None:
            raise InputError(
                f"{where}, id: {line.cells['id']!r} is in no audit of these recipes; name the recipes and values of "
                "the export, or restore the cell"
            )
        if one.key in twice:
            raise InputError(f"{where}, id: {one.key} stands in several rows; leave one of them")
        _check_texts(where, line, one)
        answers = {name: _answer(where, name, line.cells.get(name, "")) for name in QUESTIONS}
        if any(value is not None for value in answers.values()):
            comment = line.cells.get("comment") or None
            row = {"translation_id": one.translation_id, "annotator": annotator(url), **answers, "comment": comment}
            found.setdefault(one.audit, []).append(row)
    if not found:
        raise InputError(f"{url}: holds no answer in {' or '.join(QUESTIONS)}; read it when it is filled in")
    return found


def _check_texts(where: str, line: Line, one: Candidate) -> None:
    """What was sorted in part or changed by a spreadsheet would be an answer to another row."""
    for name, text in (("source", one.text), ("translation", one.translation)):
        if normalise(line.cells[name]) != normalise(clean(text)):
            raise InputError(
                f"{where}, {name}: {line.cells[name]!r} is not what was exported, {text!r}; restore the cell, "
                "and look whether answers have moved to other rows"
            )


def _answer(where: str, name: str, cell: str) -> bool | None:
    if cell.lower() not in ANSWERS:
        raise InputError(f"{where}, {name}: {cell!r} is neither yes nor no; write one of them or leave it empty")
    return ANSWERS[cell.lower()]


def annotator(url: str) -> str:
    """Who filled a sheet in, by its file's name."""
    return storage.name(url).rpartition(".")[0]


def folder(audited: Artifact) -> str:
    """Where the answers on an audit are kept: beside it, in the working folder."""
    return storage.join(artifact.workdir_of(audited.url), "annotations", audited.manifest.fingerprint)


def store(audited: Artifact, annotator: str, rows: Sequence[Mapping[str, Any]], asked: Collection[str]) -> str:
    """Keep an annotator's answers beside those of other sheets; returns the url.

    What was answered before about a translation that was `asked` about now, by its id, is replaced.
    """
    url = storage.join(folder(audited), f"{stable_id(annotator)}.parquet")
    found = pa.Table.from_pylist(list(rows), schema=tables.ANNOTATIONS)
    if storage.exists(url):
        before = storage.read_parquet(url, None, REMEDY)
        others = pc.invert(pc.is_in(before.column("translation_id"), pa.array(sorted(asked), pa.string())))
        found = pa.concat_tables([before.filter(others), found])
    storage.write_parquet(url, found)
    return url


def load(audited: Artifact) -> pa.Table | None:
    """All answers on an audit; null if there are none."""
    urls = [url for url in storage.list_files(folder(audited)) if url.endswith(".parquet")]
    return pa.concat_tables([storage.read_parquet(url, None, REMEDY) for url in urls]) if urls else None
