"""Which rows are translated, into what, and that one text is asked once."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import selection, storage, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.recipe import Translate
from ray_pipeline.selection import ALL, allocate, lowest, rank, sizes, stratum, write_requests
from tests.made import finished, pair

SIZES = {("en", 1): 700, ("en", 0): 300, ("fr", 1): 150, ("fr", 0): 50, ("de", 1): 400, ("und", 1): 100}


def row(number: int, **changes: Any) -> dict[str, Any]:
    return pair(number, **{"part": "train", "target": f"home,leaf {number}", "label": 1, **changes})


def mixed(sizes: dict[tuple[str, int], int]) -> list[dict[str, Any]]:
    strata = [stratum for stratum, size in sizes.items() for _ in range(size)]
    return [row(i, language=language, label=label) for i, (language, label) in enumerate(strata)]


def choose(rows: list[dict[str, Any]], rules: Translate) -> list[dict[str, Any]]:
    """The chosen rows of the only language, as the stage finds them shard by shard."""
    [language] = rules.languages
    found = sizes(rows, rules)
    given = allocate(found, selection.wanted(rules, language))
    cuts = {
        key: ALL if given[key] == found[key] else int(ranks.max()) for key, ranks in lowest(rows, rules, given).items()
    }
    chosen = [
        row
        for row in rows
        if (key := stratum(row, language, rules)) in cuts and rank(row, language, rules) <= cuts[key]
    ]
    assert len(chosen) == sum(given.values())
    return chosen


def ids(rows: Any) -> set[str]:
    return {found["pair_id"] for found in rows}


@pytest.mark.parametrize("wanted", [1, 2, 3, 10, 60, 240, 1199, 1200, 5000])
def test_proportions_over_source_languages_and_labels(wanted: int) -> None:
    chosen = choose(mixed(SIZES), Translate(languages=["de"], rows_per_language=wanted))
    counts = Counter((found["language"], found["label"]) for found in chosen)
    allowed = {key: size for key, size in SIZES.items() if key[0] in ("en", "fr")}
    assert len(chosen) == min(wanted, sum(allowed.values()))
    assert set(counts) <= set(allowed)
    for key, size in allowed.items():
        assert abs(counts[key] - size * len(chosen) / sum(allowed.values())) <= 1


def test_proportions_over_categories_of_paths() -> None:
    rows = [row(i, target=f"{'home' if i % 4 else 'toys, games'},leaf {i}") for i in range(800)]
    chosen = choose(rows, Translate(languages=["de"], rows_per_language=100))
    assert Counter(found["target"].split(",leaf")[0] for found in chosen) == {"home": 75, "toys, games": 25}
    titles = [found | {"task": "QI"} for found in rows]
    assert len(sizes(titles, Translate(languages=["de"]))) == 1, "titles have no levels"


@pytest.mark.parametrize("sizes", [SIZES, {("en", 1): 1, ("fr", 1): 1, ("es", 1): 1, ("it", 0): 11, ("pt", 0): 10}])
def test_a_larger_count_is_a_superset_of_a_smaller(sizes: dict[tuple[str, int], int]) -> None:
    rows = mixed(sizes)
    before: set[str] = set()
    for wanted in [*range(1, 40), 100, 500, 1100]:
        chosen = ids(choose(rows, Translate(languages=["de"], rows_per_language=wanted)))
        assert before <= chosen, wanted
        before = chosen


def test_sources_limit_the_source_languages() -> None:
    chosen = choose(mixed(SIZES), Translate(languages=["it"], sources=["fr", "de"], rows_per_language=100))
    assert len(chosen) == 100
    assert {found["language"] for found in chosen} == {"fr", "de"}


@pytest.mark.parametrize("language", ["en", "de", "fr", "it"])
def test_never_undetermined_rows_and_never_into_their_own_language(language: str) -> None:
    chosen = choose(mixed(SIZES), Translate(languages=[language], rows_per_language=10_000))
    assert {found["language"] for found in chosen} == {"en", "fr", "de"} - {language}


def test_the_choice_rests_on_seed_and_language_not_on_the_order_of_rows() -> None:
    rows, rules = mixed(SIZES), Translate(languages=["it"], rows_per_language=100)
    chosen = ids(choose(rows, rules))
    assert ids(choose(rows[::-1], rules)) == chosen
    assert ids(choose(rows, Translate(languages=["pl"], rows_per_language=100))) != chosen
    assert ids(choose(rows, Translate(languages=["it"], rows_per_language=100, seed=1))) != chosen


def test_nothing_to_choose_from() -> None:
    assert choose([], Translate(languages=["de"])) == []
    assert choose(mixed({("de", 1): 3, ("und", 0): 3}), Translate(languages=["de"])) == []


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    rows = [row(i, language="en" if i % 2 else "fr", query=f"query {i // 4}") for i in range(60)]
    rows += [row(100 + i, part=part, label=0) for i, part in enumerate(["tune", "holdout"] * 10)]
    rows += [row(200 + i, part=None, split="dev", label=None, language="de", query="query 0") for i in range(5)]
    rows += [row(300, language="und", query="x200"), row(301, part=None, split="test", label=None, language="en")]
    return finished(tmp_path, "split", rows, tables.PAIRS, shards=3)


def requested(pairs: Artifact, folder: Path, shard_rows: int = 10_000, **rules: Any) -> list[dict[str, Any]]:
    sources = write_requests(pairs, Translate(**rules), str(folder), shard_rows)
    return [item for source in sources for item in storage.read_parquet(source.url).to_pylist()]


@pytest.mark.usefixtures("ray_up")
class TestRequests:
    def test_only_rows_of_the_train_part_are_augmented(self, pairs: Artifact, tmp_path: Path) -> None:
        found = requested(pairs, tmp_path, languages=["it", "fr"], rows_per_language={"it": 1000, "fr": 12})
        assert {item["purpose"] for item in found} == {"augment"}
        assert {item["source_id"] for item in found} == {f"QC-train-{i}" for i in range(60)}
        counts = Counter((item["source_language"], item["target_language"]) for item in found)
        assert counts == {("en", "it"): 30, ("fr", "it"): 30, ("en", "fr"): 12}
        [one] = [item for item in found if item["translation_id"] == "QC-train-7-augment-it"]
        assert {key: one[key] for key in ("text", "target", "label", "group_id", "position")} == {
            "text": "query 1", "target": "home,leaf 7", "label": 1, "group_id": "g7", "position": 7,
        }  # fmt: skip

    def test_pivot_asks_every_text_of_every_split_once_and_english_never(self, pairs: Artifact, tmp_path: Path) -> None:
        found = requested(pairs, tmp_path, pivot=True)
        assert {(item["purpose"], item["target_language"]) for item in found} == {("pivot", "en")}
        asked = Counter((item["text"], item["source_language"]) for item in found)
        expected = {(f"query {i}", "fr") for i in range(15)} | {("query 0", "de"), ("x200", "und")}
        assert asked == dict.fromkeys(expected, 1)

    def test_nothing_is_asked_for_when_nothing_is_wanted(self, pairs: Artifact, tmp_path: Path) -> None:
        assert requested(pairs, tmp_path) == []
        assert not list(tmp_path.glob("part-*"))

    def test_the_same_rows_are_chosen_however_the_pairs_are_divided(self, pairs: Artifact, tmp_path: Path) -> None:
        rows = [item for table in pairs.tables() for item in table.to_pylist()]
        other = finished(tmp_path / "other", "split", rows[::-1], tables.PAIRS)
        wanted: dict[str, Any] = {"languages": ["de", "it"], "rows_per_language": 20, "pivot": True}
        first = requested(pairs, tmp_path / "a", **wanted)
        assert requested(other, tmp_path / "b", **wanted) == first
        counts = Counter((item["purpose"], item["target_language"]) for item in first)
        assert counts == {("augment", "de"): 20, ("augment", "it"): 20, ("pivot", "en"): 17}
        assert len({item["translation_id"] for item in first}) == len(first)

    @pytest.mark.parametrize("shard_rows", [7, 1000])
    def test_one_text_stands_in_one_shard(self, pairs: Artifact, tmp_path: Path, shard_rows: int) -> None:
        sources = write_requests(
            pairs, Translate(languages=["de", "it"], pivot=True), str(tmp_path / "out"), shard_rows
        )
        shards_of = defaultdict(set)
        for source in sources:
            table = storage.read_parquet(source.url)
            assert table.schema.equals(tables.TRANSLATIONS, check_metadata=False)
            assert table.num_rows == source.rows > 0
            for text in table.column("text").to_pylist():
                shards_of[text].add(source.name)
        assert all(len(names) == 1 for names in shards_of.values())
        assert (len(sources) > 1) == (shard_rows < 1000)
        assert isinstance(table, pa.Table)
