"""The sample shop: its format, its shares, and that each row stands on its own."""

import dataclasses
import functools
import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from ray_pipeline.sandbox import lexicon, shop
from ray_pipeline.sandbox.lexicon import LANGUAGES, split_path
from ray_pipeline.sandbox.shop import SPLITS, TASKS, Item, Pair, Query, ShopSpec, Split, Task, pair, row, rows

SPEC = ShopSpec(train_rows=4000, dev_rows=4000, test_rows=4000)
SMALL = ShopSpec(train_rows=60, dev_rows=20, test_rows=20)
BOTH_TASKS = pytest.mark.parametrize("task", TASKS)


@functools.cache
def pairs(task: Task, split: Split) -> list[Pair]:
    return [pair(SPEC, task, split, index) for index in range(4000)]


@functools.cache
def records(task: Task, split: Split) -> list[dict[str, object]]:
    return list(rows(SPEC, task, split))


def share(truths: Iterable[bool]) -> float:
    counts = Counter(truths)
    return counts[True] / counts.total()


def near(expected: float) -> object:
    return pytest.approx(expected, abs=0.02)


def query_and_target(record: dict[str, object]) -> tuple[object, ...]:
    return record["origin_query"], record.get("category_path", record.get("item_title"))


@BOTH_TASKS
@pytest.mark.parametrize("split", SPLITS)
def test_records_have_the_competition_s_keys(task: Task, split: Split) -> None:
    target = "category_path" if task == "QC" else "item_title"
    keys = ["id", "task", "language", "origin_query", target] + (["label"] if split == "train" else [])
    made = records(task, split)
    assert all(list(record) == keys and record["task"] == task for record in made)
    assert [record["id"] for record in made] == list(range(1, 4001))
    assert all(record["origin_query"] for record in made)


@BOTH_TASKS
def test_languages_of_the_splits(task: Task) -> None:
    seen = {"en", "es", "fr", "ja", "ko", "pt"} | ({"th"} if task == "QI" else set())
    unseen = {"de", "it", "pl", "ar"} | ({"id", "vn"} if task == "QI" else set())
    assert {record["language"] for record in records(task, "train")} == seen
    for split in ("dev", "test"):
        counts = Counter(record["language"] for record in records(task, split))
        assert set(counts) == seen | unseen
        assert min(counts.values()) > 0.8 * 4000 / len(counts)


@BOTH_TASKS
@pytest.mark.parametrize("split", SPLITS)
def test_share_of_positives(task: Task, split: Split) -> None:
    expected = {"QC": 0.69, "QI": 0.62}[task]
    assert share(one.label == 1 for one in pairs(task, split)) == near(expected)


def test_kinds_of_category_paths() -> None:
    positive = [one for one in pairs("QC", "dev") if one.label]
    negative = [one for one in pairs("QC", "dev") if not one.label]
    assert share(one.target != one.query.noun.path for one in positive) == near(0.25)
    tops = [(split_path(one.target or "")[0], one.query.noun.levels[0]) for one in negative]
    assert share(top == own for top, own in tops) == near(0.5)


def test_kinds_of_irrelevant_items() -> None:
    kinds: Counter[str] = Counter()
    for one in pairs("QI", "dev") + pairs("QI", "test"):
        if one.item and not one.label:
            asked, offered = one.query.noun, one.item.noun
            same_top = asked.levels[0] == offered.levels[0]
            kinds["clash" if asked == offered else "sibling" if same_top else "other"] += 1
    shares = {kind: count / kinds.total() for kind, count in kinds.items()}
    assert shares == {"clash": near(0.2), "sibling": near(0.35), "other": near(0.45)}


def is_relevant_item(query: Query, item: Item) -> bool:
    """QI's rule: the same kind of product, and no colour or audience other than the one asked for."""
    offered = {modifier.kind: modifier for modifier in item.modifiers}
    asked = [modifier for modifier in query.modifiers if modifier.kind in ("colour", "audience")]
    return item.noun == query.noun and all(offered.get(one.kind, one) == one for one in asked)


def test_labels_follow_the_rules_and_only_train_is_noisy() -> None:
    def right(one: Pair) -> bool:
        if one.item:
            return is_relevant_item(one.query, one.item) == bool(one.label)
        return shop.is_relevant_path(one.query.noun, one.target or "") == bool(one.label)

    for task in TASKS:
        assert all(right(one) for one in pairs(task, "dev") + pairs(task, "test"))
        assert share(right(one) for one in pairs(task, "train") if one.target) == pytest.approx(0.98, abs=0.007)


def test_titles_say_the_product_and_its_properties() -> None:
    for one in pairs("QI", "dev")[:500]:
        assert one.item and one.target
        title = one.target.lower()
        assert any(name in title for name in one.item.noun.terms["en"])
        assert all(modifier.terms["en"][0] in title for modifier in one.item.modifiers)
        assert one.target.startswith(one.item.brand)


def test_relevance_of_a_path() -> None:
    noun = next(noun for noun in lexicon.load().nouns if noun.concept == "seat_cover")
    assert shop.is_relevant_path(noun, noun.path)
    assert shop.is_relevant_path(noun, "automobiles, parts & accessories,interior parts")
    assert not shop.is_relevant_path(noun, "automobiles, parts & accessories")
    assert not shop.is_relevant_path(noun, "automobiles, parts & accessories,interior parts,floor mats")


@BOTH_TASKS
def test_labels_are_sometimes_strings_and_absent_in_dev(task: Task) -> None:
    labels = Counter(repr(record["label"]) for record in records(task, "train"))
    assert set(labels) == {"0", "1", "'0'", "'1'"}
    assert not any("label" in record for record in records(task, "dev") + records(task, "test"))


@BOTH_TASKS
def test_synonyms_are_more_frequent_in_test(task: Task) -> None:
    assert share(one.query.synonym for one in pairs(task, "train")) == near(0.1)
    assert share(one.query.synonym for one in pairs(task, "test")) == near(0.3)


@BOTH_TASKS
def test_exact_duplicates_and_queries_with_several_targets(task: Task) -> None:
    made = records(task, "train")
    duplicates = 1 - len({query_and_target(record) for record in made}) / len(made)
    assert 0.01 < duplicates < 0.04
    targets: dict[object, set[object]] = {}
    for record in made:
        query, target = query_and_target(record)
        targets.setdefault(query, set()).add(target)
    assert share(len(some) > 1 for some in targets.values()) > 0.1


@BOTH_TASKS
def test_tags_are_wrong_mostly_on_english_rows(task: Task) -> None:
    def wrong(english: bool) -> float:
        many = pairs(task, "train") + pairs(task, "dev") + pairs(task, "test")
        return share(one.query.tag != one.query.language for one in many if (one.query.tag == "en") == english)

    assert 0.06 < wrong(english=True) < 0.14
    assert 0.01 < wrong(english=False) < 0.03


def test_null_titles_are_rare_and_in_train_only() -> None:
    nulls = [record for record in records("QI", "train") if record["item_title"] is None]
    assert 1 <= len(nulls) <= 15
    assert all(record["item_title"] for record in records("QI", "dev") + records("QI", "test"))


@BOTH_TASKS
def test_any_row_can_be_made_alone(task: Task) -> None:
    for index in (3999, 17, 0, 1234, 2500):
        assert row(SPEC, task, "train", index) == records(task, "train")[index]
    longer = dataclasses.replace(SPEC, train_rows=9000)
    assert row(longer, task, "train", 3999) == records(task, "train")[3999]


def test_the_seed_decides() -> None:
    other = dataclasses.replace(SMALL, seed=8)
    assert list(rows(SMALL, "QC", "train")) == list(rows(SMALL, "QC", "train"))
    assert list(rows(SMALL, "QC", "train")) != list(rows(other, "QC", "train"))


def test_a_misspelling_touches_one_letter_of_alphabetic_words_only() -> None:
    rng = random.Random(1)
    assert shop._misspell(rng, "รองเท้าวิ่ง 운동화 ランニングシューズ tv") == "รองเท้าวิ่ง 운동화 ランニングシューズ tv"
    made = {shop._misspell(rng, "red shoes") for _ in range(200)}
    assert {"red hsoes", "red hoes", "red sshoes"} <= made
    assert all(text.startswith("red ") for text in made)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "red leather running shoes for men"),
        ("de", "rot leder laufschuhe für herren"),
        ("fr", "chaussures de course rouge cuir pour homme"),
        ("ja", "赤 レザー メンズ ランニングシューズ"),
        ("ar", "حذاء جري أحمر جلد رجالي"),
    ],
)
def test_word_order(language: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop, "_GLUE", 0)
    monkeypatch.setattr(shop, "_CODE_MIXED", 0)
    noun = next(noun for noun in lexicon.load().nouns if noun.concept == "running_shoes")
    named = {modifier.concept: modifier for modifier in lexicon.load().modifiers}
    modifiers = [named["red"], named["leather"], named["men"]]
    assert " ".join(shop._phrase(random.Random(1), language, noun, modifiers, False)) == expected


def test_files_are_json_lines_with_the_truth_beside_them(tmp_path: Path) -> None:
    written = shop.write_shop(SMALL, tmp_path / "shop")
    assert len(written) == 10
    for name, path in written.items():
        assert path == tmp_path / "shop" / f"{name}.txt"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(lines) == (60 if "train" in name else 20)
        if name.startswith("labels/"):
            assert all({"id", "origin_query"} < set(line) and line["label"] in (0, 1) for line in lines)
    assert "\\u" not in written["train_QI"].read_text(encoding="utf-8"), "native scripts are readable"
    again = shop.write_shop(SMALL, tmp_path / "again")
    assert all(path.read_bytes() == again[name].read_bytes() for name, path in written.items())


def test_the_bytes_are_those_of_every_version(tmp_path: Path) -> None:
    # A golden value: if it changes, so do the demo's figures, and shop.VERSION must rise.
    written = shop.write_shop(ShopSpec(train_rows=400, dev_rows=80, test_rows=80), tmp_path)
    content = b"".join(path.read_bytes() for _, path in sorted(written.items()))
    assert hashlib.sha256(content).hexdigest() == "43d38d4d3949f42fbc4fd0d6ea409ee953249c3dbf1cf5f45c9552b553e3d55f"


def test_the_command_line_writes_a_shop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_pipeline.sandbox.write_shop", "--rows", "30", "--folder", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert len((tmp_path / "train_QC.txt").read_text(encoding="utf-8").splitlines()) == 30
    assert len((tmp_path / "test_QI.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_every_language_of_the_lexicon_is_used() -> None:
    used = {one for task in TASKS for one in shop.languages(task, "test")}
    assert used == set(LANGUAGES)
