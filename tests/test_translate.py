"""Which rows are translated, into what, and that one text is asked once."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, storage, tables, translate
from ray_pipeline.artifact import Artifact
from ray_pipeline.recipe import Recipe, Translate
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context
from ray_pipeline.translate import choose, requests, write_requests


def row(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "pair_id": f"QC-train-{number}", "task": "QC", "split": "train", "part": "train", "language": "en",
        "language_raw": "en", "query": f"query {number}", "target": f"home,leaf {number}", "label": 1,
        "query_en": None, "origin": "original", "source_id": f"QC-train-{number}", "group_id": f"g{number}",
        "position": number, "similarity": None,
    }  # fmt: skip
    return made | changes


def mixed(sizes: dict[tuple[str, int], int]) -> list[dict[str, Any]]:
    strata = [stratum for stratum, size in sizes.items() for _ in range(size)]
    return [row(i, language=language, label=label) for i, (language, label) in enumerate(strata)]


SIZES = {("en", 1): 700, ("en", 0): 300, ("fr", 1): 150, ("fr", 0): 50, ("de", 1): 400, ("und", 1): 100}


def ids(rows: Any) -> list[str]:
    return [found["pair_id"] for found in rows]


@pytest.mark.parametrize("wanted", [1, 2, 3, 10, 60, 240, 1199, 1200, 5000])
def test_proportions_over_source_languages_and_labels(wanted: int) -> None:
    chosen = choose(mixed(SIZES), "de", Translate(languages=["de"], rows_per_language=wanted))
    counts = Counter((found["language"], found["label"]) for found in chosen)
    allowed = {stratum: size for stratum, size in SIZES.items() if stratum[0] in ("en", "fr")}
    assert len(chosen) == min(wanted, sum(allowed.values()))
    assert set(counts) <= set(allowed)
    for stratum, size in allowed.items():
        assert abs(counts[stratum] - size * len(chosen) / sum(allowed.values())) <= 1
    assert len(set(ids(chosen))) == len(chosen)


@pytest.mark.parametrize("sizes", [SIZES, {("en", 1): 1, ("fr", 1): 1, ("es", 1): 1, ("it", 0): 11, ("pt", 0): 10}])
def test_a_larger_count_is_a_superset_of_a_smaller(sizes: dict[tuple[str, int], int]) -> None:
    rows = mixed(sizes)
    before: set[str] = set()
    for wanted in [*range(1, 40), 100, 500, 1100]:
        chosen = set(ids(choose(rows, "de", Translate(rows_per_language=wanted))))
        assert before <= chosen, wanted
        before = chosen


def test_sources_limit_the_source_languages() -> None:
    chosen = choose(mixed(SIZES), "it", Translate(languages=["it"], sources=["fr", "de"], rows_per_language=100))
    assert len(chosen) == 100
    assert {found["language"] for found in chosen} == {"fr", "de"}


@pytest.mark.parametrize("language", ["en", "de", "fr", "it"])
def test_never_undetermined_rows_and_never_into_their_own_language(language: str) -> None:
    chosen = choose(mixed(SIZES), language, Translate(rows_per_language=10_000))
    assert {found["language"] for found in chosen} == {"en", "fr", "de"} - {language}


def test_the_choice_rests_on_seed_and_language_not_on_the_order_of_rows() -> None:
    rows, rules = mixed(SIZES), Translate(rows_per_language=100)
    chosen = ids(choose(rows, "it", rules))
    assert ids(choose(rows[::-1], "it", rules)) == chosen
    assert set(ids(choose(rows, "pl", rules))) != set(chosen)
    assert set(ids(choose(rows, "it", Translate(rows_per_language=100, seed=1)))) != set(chosen)


def test_nothing_to_choose_from() -> None:
    assert choose([], "de", Translate()) == []
    assert choose(mixed({("de", 1): 3, ("und", 0): 3}), "de", Translate()) == []


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    rows = [row(i, language="en" if i % 2 else "fr", query=f"query {i // 4}") for i in range(60)]
    rows += [row(100 + i, part=part, label=0) for i, part in enumerate(["tune", "holdout"] * 10)]
    rows += [row(200 + i, part=None, split="dev", label=None, language="de", query="query 0") for i in range(5)]
    rows += [row(300, language="und", query="x200"), row(301, part=None, split="test", label=None, language="en")]
    folder = str(tmp_path / "split" / "0123")
    counts = []
    for number in range(3):
        table = pa.Table.from_pylist(rows[number::3], schema=tables.PAIRS)
        counts.append(artifact.write_shard(folder, f"part-{number:05d}.parquet", table, None, table.num_rows))
    return artifact.commit(folder, "split", {}, {}, artifact.total(counts), 0.0, {})


def test_only_rows_of_the_train_part_are_augmented(pairs: Artifact) -> None:
    rules = Translate(languages=["it", "fr"], rows_per_language=1000)
    found = list(requests(pairs, rules))
    assert {item["purpose"] for item in found} == {"augment"}
    sources = {item["source_id"] for item in found}
    assert sources == {f"QC-train-{i}" for i in range(60)}
    counts = Counter((item["source_language"], item["target_language"]) for item in found)
    assert counts == {("en", "it"): 30, ("fr", "it"): 30, ("en", "fr"): 30}
    pa.Table.from_pylist(found, schema=tables.TRANSLATIONS)
    [one] = [item for item in found if item["translation_id"] == "QC-train-7-augment-it"]
    assert {key: one[key] for key in ("text", "target", "label", "group_id", "position")} == {
        "text": "query 1", "target": "home,leaf 7", "label": 1, "group_id": "g7", "position": 7,
    }  # fmt: skip


def test_pivot_asks_every_text_of_every_split_once_and_english_never(pairs: Artifact) -> None:
    found = list(requests(pairs, Translate(pivot=True)))
    assert {(item["purpose"], item["target_language"]) for item in found} == {("pivot", "en")}
    asked = Counter((item["text"], item["source_language"]) for item in found)
    expected = {(f"query {i}", "fr") for i in range(15)} | {("query 0", "de"), ("x200", "und")}
    assert asked == dict.fromkeys(expected, 1)


def test_nothing_is_asked_for_when_nothing_is_wanted(pairs: Artifact) -> None:
    assert list(requests(pairs, Translate())) == []


def test_request_ids_are_unique(pairs: Artifact) -> None:
    found = [item["translation_id"] for item in requests(pairs, Translate(languages=["de", "it", "en"], pivot=True))]
    assert len(set(found)) == len(found) > 100


@pytest.mark.parametrize("shard_rows", [1, 2, 7, 1000])
def test_one_text_stands_in_one_request_shard(pairs: Artifact, tmp_path: Path, shard_rows: int) -> None:
    found = list(requests(pairs, Translate(languages=["de", "it"], pivot=True)))
    sources = write_requests(iter(found), str(tmp_path / "out"), shard_rows)
    shards_of, written = defaultdict(set), []
    for source in sources:
        rows = storage.read_parquet(source.url).to_pylist()
        assert len(rows) == source.rows > 0
        assert source.url.endswith(source.name)
        written += rows
        for item in rows:
            shards_of[item["text"]].add(source.name)
    assert all(len(names) == 1 for names in shards_of.values())
    assert Counter(item["translation_id"] for item in written) == Counter(item["translation_id"] for item in found)
    assert (len(sources) > 1) == (shard_rows < 1000)
    assert all(source.rows >= shard_rows for source in sources[:-1])


def test_request_shards_are_the_same_whatever_the_order_of_requests(pairs: Artifact, tmp_path: Path) -> None:
    found = list(requests(pairs, Translate(languages=["de"], pivot=True)))
    first = write_requests(iter(found), str(tmp_path / "a"), 10)
    second = write_requests(iter(found[::-1]), str(tmp_path / "b"), 10)
    assert [storage.read_parquet(s.url) for s in first] == [storage.read_parquet(s.url) for s in second]


def test_no_requests_no_shards(tmp_path: Path) -> None:
    assert write_requests(iter([]), str(tmp_path), 10) == []


def test_identity(make_recipe: Callable[..., Recipe]) -> None:
    def config(**changes: Any) -> Any:
        return translate.config(make_recipe(**changes))

    assert config() == config(gemini__model="other", translate__rows_per_language=3) == {"translate": None}
    base = {"translate__languages": ["de"]}
    assert config(**base, gemini__concurrency=1, gemini__items_per_request=3, gemini__max_usd=1) == config(**base)
    assert config(**base, gemini__model="other") != config(**base)
    assert config(**base, translate__seed=1) != config(**base)


def test_an_attempt_goes_on_with_the_division_of_the_one_before(
    pairs: Artifact, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    """Else shards that the killed one has finished would hold rows of others'."""

    def sources(shard_rows: int) -> list[Source]:
        recipe = make_recipe(translate__languages=["de"], translate__pivot=True, runtime__shard_rows=shard_rows)
        folder = str(tmp_path / "translate")
        return translate._sources(Context(recipe, {"split": pairs}, folder, str(tmp_path), {}))

    first = sources(7)
    assert len(first) > 1
    assert sources(3) == first == sources(10_000)
    (tmp_path / "translate" / "requests.done").unlink()  # killed while it divided
    again = sources(10_000)
    assert len(again) == 1 and again[0].rows == sum(source.rows for source in first)
    assert artifact.present_shards(str(tmp_path / "translate" / "requests")) == [again[0].name]
