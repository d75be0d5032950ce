"""The three parts: by group, in about the shares asked for, withheld languages and branches kept apart."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, split, tables
from ray_pipeline.errors import InputError
from ray_pipeline.recipe import Split
from ray_pipeline.text import levels, stable_id

PARTS = {"train", "tune", "holdout"}


def row(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "pair_id": f"QC-train-{number}", "task": "QC", "split": "train", "part": None, "language": "en",
        "language_raw": "en", "query": f"q{number // 3}", "target": f"top{number % 7},second{number % 5},leaf{number}",
        "label": number % 2, "query_en": None, "origin": "original", "source_id": f"QC-train-{number}",
        "group_id": stable_id(f"q{number // 3}"), "position": number, "similarity": None,
    }  # fmt: skip
    return made | changes


def assign(rows: list[dict[str, Any]], rules: Split) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    result = split.assign(rules, pa.Table.from_pylist(rows, schema=tables.PAIRS))
    tables.conform(result.table, tables.PAIRS)
    assert result.rejected is not None
    kept, refused = result.table.to_pylist(), result.rejected.to_pylist()
    assert len(kept) + len(refused) == len(rows)
    return kept, refused


@pytest.mark.parametrize(("tune", "holdout"), [(0.1, 0.1), (0.05, 0.3), (0.4, 0.2)])
def test_shares_are_about_right(tune: float, holdout: float) -> None:
    rules = Split(tune=tune, holdout=holdout)
    counts = Counter(split.part_of(stable_id(f"group {i}"), rules) for i in range(10_000))
    for part, share in {"tune": tune, "holdout": holdout, "train": 1 - tune - holdout}.items():
        error = 4 * (share * (1 - share) / 10_000) ** 0.5
        assert counts[part] / 10_000 == pytest.approx(share, abs=error)


@pytest.mark.parametrize("by", ["query", "branch"])
def test_a_group_is_never_in_two_parts(by: Any) -> None:
    kept, _ = assign([row(i) for i in range(3000)], Split(tune=0.2, holdout=0.2, by=by))
    parts = defaultdict(set)
    for found in kept:
        parts[found["group_id"]].add(found["part"])
    assert set(Counter(len(where) for where in parts.values())) == {1}
    assert {found["part"] for found in kept} == PARTS


def test_by_query_no_row_is_refused_and_branches_may_cross() -> None:
    kept, refused = assign([row(i) for i in range(3000)], Split())
    assert not refused
    parts = defaultdict(set)
    for found in kept:
        parts[",".join(levels(found["target"])[:2])].add(found["part"])
    assert any(len(where) > 1 for where in parts.values())


@pytest.mark.parametrize("branch_levels", [1, 2])
def test_by_branch_no_branch_is_in_two_parts(branch_levels: int) -> None:
    names = [f"top, {a},second{b},leaf{c}" for a in range(30) for b in range(6) for c in range(12)]
    rows = [row(i, target=target.upper() if i % 3 else target) for i, target in enumerate(names)]
    kept, refused = assign(rows, Split(tune=0.2, holdout=0.2, by="branch", branch_levels=branch_levels))
    parts = defaultdict(set)
    for found in kept:
        parts[",".join(levels(found["target"].lower())[:branch_levels])].add(found["part"])
    assert all(len(where) == 1 for where in parts.values())
    assert set().union(*parts.values()) == PARTS
    coarser = defaultdict(set)
    for found in kept:
        coarser[levels(found["target"].lower())[0]].add(found["part"])
    assert any(len(where) > 1 for where in coarser.values()) == (branch_levels > 1)
    assert {found["reason"] for found in refused} == {"query and branch in different parts"}
    expected = 1 - (0.6**2 + 0.2**2 + 0.2**2)  # query and branch fall independently
    assert len(refused) / len(rows) == pytest.approx(expected, abs=0.12)


def test_withheld_languages_are_in_holdout_only() -> None:
    rows = [row(i, language="pt" if i % 4 == 0 else "en") for i in range(2000)]
    kept, refused = assign(rows, Split(withhold=["pt"]))
    assert {found["part"] for found in kept if found["language"] == "pt"} == {"holdout"}
    assert {found["part"] for found in kept if found["language"] == "en"} == PARTS
    assert {(found["language"], found["reason"]) for found in refused} == {("pt", "language withheld by the recipe")}
    everyone, _ = assign(rows, Split())
    holdout = [found["pair_id"] for found in everyone if found["part"] == "holdout"]
    assert [found["pair_id"] for found in kept if found["part"] == "holdout"] == holdout


def test_dev_and_test_pass_through_without_a_part_or_a_look_at_their_language() -> None:
    rows = [row(i, split=name, language="pt", label=None) for i in range(50) for name in ("dev", "test")]
    kept, refused = assign(rows, Split(withhold=["pt"], by="branch"))
    assert not refused
    assert kept == rows


def test_parts_depend_on_group_and_seed_alone() -> None:
    rows = [row(i) for i in range(300)]
    once = {found["pair_id"]: found["part"] for found in assign(rows, Split())[0]}
    again = {found["pair_id"]: found["part"] for found in assign(rows[::-1][:150], Split())[0]}
    assert again.items() <= once.items()
    other = {found["pair_id"]: found["part"] for found in assign(rows, Split(seed=1))[0]}
    assert other != once


def test_a_larger_holdout_keeps_the_smaller_one_s_groups() -> None:
    groups = [stable_id(str(i)) for i in range(1000)]
    small, large = ({g for g in groups if split.part_of(g, Split(holdout=h)) == "holdout"} for h in (0.1, 0.2))
    assert small < large


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("train", 0), ("train", 1), ("tune", 0), ("tune", 1)], "holdout part holds no rows.*split.holdout"),
        ([("train", 0), ("train", 1), ("tune", 1), ("holdout", 1)], "tune part holds only rows labelled 1"),
        ([("train", 0), ("train", 1), ("holdout", 0), ("holdout", 1)], "tune part holds no rows.*split.tune"),
        ([("train", 0)], "train part holds only rows labelled 0"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_do_stops_before_money_is_spent(
    tmp_path: Path, rows: list[tuple[str, int]], message: str
) -> None:
    checked = parts_of(tmp_path, rows)
    with pytest.raises(InputError, match=message):
        split._check_classes(checked)


def test_a_holdout_of_one_class_is_only_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [(part, label) for part in PARTS for label in (0, 1)]
    split._check_classes(parts_of(tmp_path / "whole", whole))
    assert capsys.readouterr().err == ""
    split._check_classes(parts_of(tmp_path / "less", [one for one in whole if one != ("holdout", 0)]))
    assert "the holdout part holds only rows labelled 1: AUROC" in capsys.readouterr().err


def parts_of(folder: Path, rows: list[tuple[str, int]]) -> str:
    """A folder with a shard of labelled rows of these parts, and one of dev."""
    made = [row(i, part=part, label=label) for i, (part, label) in enumerate(rows)]
    table = pa.Table.from_pylist([*made, row(99, split="dev", label=None)], schema=tables.PAIRS)
    artifact.write_shard(str(folder), "part-00000.parquet", table, None, table.num_rows)
    return str(folder)
