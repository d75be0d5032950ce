"""The competition's zip: the input's rows in the input's order, each with its prediction."""

import json
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from ray_pipeline.artifact import Manifest
from ray_pipeline.errors import CorruptArtifactError, InputError
from ray_pipeline.recipe import TARGET_COLUMNS

MOST_ROWS = 20_000_000
"""Of a split, or it has no submission: one file that one process writes and reads back, at some 45 µs a row."""
_SHOWN = 5  # ids that an error names
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first moment: the same rows give the same bytes
Expected = tuple[Hashable, int | None]
"""The id of a row and its prediction; the latter null where it is not known."""


@dataclass(frozen=True)
class SubmissionTask:
    """What one file of the submission is made of."""

    rows: Iterable[Mapping[str, Any]]
    """The competition file's parsed lines in its order, keys and values as they are there; read once."""
    predict: Callable[[Mapping[str, Any]], int | None]
    """0 or 1 for such a row; None where there is no prediction."""
    large: bool = False
    """Whether its file may be larger than 1 GiB, for which the zip needs other headers (ZIP64), said beforehand."""


def left_out(ingested: Iterable[Manifest], split: str) -> int | None:
    """How many rows of a split some raw data have, if they are more than a submission is made of; else null."""
    rows = max(one.extra.get("splits", {}).get(split, 0) for one in ingested)
    return rows if rows > MOST_ROWS else None


def write_submission(path: Path, tasks: Mapping[str, SubmissionTask]) -> dict[str, int]:
    """Writes `submit_QC.txt` and `submit_QI.txt` as JSON Lines into one zip; returns the rows by task.

    Keys other than `id`, `language`, `origin_query` and the task's target are dropped, `prediction` is added. Equal
    input gives equal bytes (with one zlib). Raises `InputError` for an unknown task, a task without rows, a row
    without a key, a prediction that is missing or neither 0 nor 1: what stands at the path is then worth nothing.
    """
    unknown = sorted(set(tasks) - set(TARGET_COLUMNS))
    if unknown or not tasks:
        what = f"unknown tasks: {', '.join(unknown)}" if unknown else "no task is given"
        raise InputError(f"a submission holds QC, QI or both; {what}")
    counts: dict[str, int] = {}
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(tasks):
            with archive.open(_member(name), "w", force_zip64=tasks[name].large) as file:
                counts[name] = _write_task(file, name, tasks[name])
    return counts


def verify_submission(
    source: str | Path | IO[bytes], expected: Mapping[str, Iterable[Expected] | None]
) -> dict[str, int]:
    """Reads a submission back and returns its rows by task.

    `expected` holds what is to stand in each task's file, in its order; null where it is not known. Raises
    `CorruptArtifactError` where the zip is unreadable, a file is missing or more, an id or a prediction differs,
    rows are missing or more, a key is missing or a prediction is neither 0 nor 1.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            wanted = sorted(_file_name(name) for name in expected)
            if sorted(archive.namelist()) != wanted:
                raise _broken(f"its files are {archive.namelist()} instead of {wanted}")
            return {name: _verify_task(archive, name, expected[name]) for name in sorted(expected)}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _broken(f"not a readable zip ({error})") from error


def _broken(what: str) -> CorruptArtifactError:
    return CorruptArtifactError(f"the submission is broken: {what}; write it again")


def _file_name(task: str) -> str:
    return f"submit_{task}.txt"


def _member(task: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(_file_name(task), _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix on every machine: part of the bytes
    info.external_attr = 0o644 << 16
    return info


def _keys(task: str) -> tuple[str, ...]:
    return ("id", "language", "origin_query", TARGET_COLUMNS[task])


def _write_task(file: IO[bytes], name: str, task: SubmissionTask) -> int:
    number, missing, first_missing = 0, 0, []
    for number, row in enumerate(task.rows, start=1):
        kept = _kept(name, number, row)
        prediction = task.predict(row)
        if prediction is None:
            missing += 1
            first_missing += [kept["id"]] if missing <= _SHOWN else []
        elif prediction not in (0, 1):
            raise InputError(f"{name}: prediction {prediction!r} of id {kept['id']!r} must be 0 or 1")
        elif not missing:
            line = json.dumps({**kept, "prediction": prediction}, ensure_ascii=False)
            file.write(line.encode() + b"\n")
    if number == 0:
        raise InputError(f"{name}: the competition file has no rows: check the recipe's path to it")
    if missing:
        raise InputError(
            f"{name}: {missing} of {number} rows have no prediction, the first ids: "
            f"{', '.join(map(repr, first_missing))}; score every row of this file (look for these ids among "
            "the rejected rows of earlier stages), or let data.rejected_prediction say what rejected rows have, and "
            "write the submission again"
        )
    return number


def _kept(name: str, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    absent = [key for key in _keys(name) if key not in row]
    if absent:
        raise InputError(f"{name}: row {number} of the competition file has no {', '.join(absent)}: add it")
    return {key: row[key] for key in _keys(name)}


def _verify_task(archive: zipfile.ZipFile, task: str, rows: Iterable[Expected] | None) -> int:
    end, number = object(), 0
    with archive.open(_file_name(task)) as file:
        lines: Iterable[tuple[Any, Any]]
        lines = ((line, None) for line in file) if rows is None else zip_longest(file, rows, fillvalue=end)
        for number, (line, expected) in enumerate(lines, start=1):
            where = f"{_file_name(task)}, line {number}"
            if line is end or expected is end:
                raise _broken(f"{where}: {'a row is missing' if line is end else 'there is a row too many'}")
            row = _verified(line, task, where)
            if expected is not None:
                _compare(row, expected, where)
    return number


def _compare(row: Mapping[str, Any], expected: Expected, where: str) -> None:
    identity, prediction = expected
    if row["id"] != identity:
        raise _broken(f"{where}: id {row['id']!r} where {identity!r} belongs")
    if prediction is not None and row["prediction"] != prediction:
        raise _broken(f"{where}: prediction {row['prediction']} of id {identity!r}, which was predicted {prediction}")


def _verified(line: Any, task: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _broken(f"{where}: not JSON ({error})") from error
    keys = [*_keys(task), "prediction"]
    if not isinstance(row, dict) or list(row) != keys:
        raise _broken(f"{where}: its keys are not {keys}")
    if type(row["prediction"]) is not int or row["prediction"] not in (0, 1):
        raise _broken(f"{where}: prediction {row['prediction']!r} is neither 0 nor 1")
    return row
