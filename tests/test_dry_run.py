"""What a run would ask of Gemini and what it would cost, said beforehand."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import dry_run, estimate, ingest, pipeline, rawfiles, tables
from ray_pipeline.errors import InputError
from ray_pipeline.estimate import Rows
from ray_pipeline.gemini import ledger, pricing
from ray_pipeline.gemini.ledger import Answer, Ledger
from ray_pipeline.gemini.pricing import Estimate
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Gemini, Recipe
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_server import GeminiServer
from ray_pipeline.split import part_of
from ray_pipeline.text import normalise, stable_id

from . import made

ROWS = 200


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make(make_recipe: Any, tmp_path: Path) -> Any:
    """Makes a recipe of 200 rows, in two copies each, tagged English and French in turn."""
    lines = [
        {"id": i, "language": ("en", "fr")[i // 2 % 2], "origin_query": f"red shoes {i // 2:03d}",
         "category_path": f"a,b{i}", "label": i % 2}
        for i in range(ROWS)
    ]  # fmt: skip
    (tmp_path / "train.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def made(**changes: Any) -> Recipe:
        small = {"embed__model": "a/b", "train__model": "a/b", "gemini__items_per_request": 10}
        found: Recipe = make_recipe(**(small | changes))
        return found

    return made


def estimates(recipe: Recipe, tmp_path: Path) -> dict[str, Estimate]:
    return dry_run.estimates(recipe, pipeline.plan(recipe, str(tmp_path / "work")))


FIXED = {"languages__correct": False}


def test_duplicates_count_once_and_more_rows_cost_more(make: Any, tmp_path: Path) -> None:
    found = [
        estimates(make(**FIXED, translate__languages=["de", "pl"], translate__rows_per_language=rows), tmp_path)
        for rows in (20, 40, 10**6)
    ]
    one, two, all_of_them = (estimate["translate"] for estimate in found)
    assert 36 <= one.items <= 40, "a few of twenty rows share their query"
    assert 65 <= two.items <= 80
    assert 0.7 * ROWS < all_of_them.items < 0.9 * ROWS, "each query of the train part once in either language"
    assert one.requests == -(-one.items // 10) < two.requests
    for name in ("input_tokens", "output_tokens", "usd"):
        assert getattr(two, name) == pytest.approx(getattr(one, name) * two.requests / one.requests, rel=0.1)


def test_the_pivot_counts_foreign_queries_and_no_translation_counts_none(make: Any, tmp_path: Path) -> None:
    assert estimates(make(**FIXED, translate__pivot=True), tmp_path)["translate"].items == pytest.approx(50, abs=8)
    assert estimates(make(**FIXED), tmp_path) == {}
    assert "languages" not in estimates(make(languages__gemini=False), tmp_path)
    asked = estimates(make(languages__min_confidence=1.0), tmp_path)["languages"]
    assert asked.items == 50, "English texts that are tagged French, each once"


def more(folder: Path, name: str, rows: int, language: str) -> list[str]:
    """A file of so many other rows, in a list as recipes name it."""
    path = folder / f"{name}.txt"
    lines = [
        {"id": i, "language": language, "origin_query": f"red shoes {name} {i}", "category_path": f"a,b{i}",
         "label": i % 2}
        for i in range(rows)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(path)]


def test_the_pivot_is_of_all_parts_and_of_no_row_that_the_split_refuses(make: Any, tmp_path: Path) -> None:
    english, french = more(tmp_path, "english", ROWS, "en"), more(tmp_path, "french", 100, "fr")
    recipe = make(**FIXED, translate__pivot=True, data__train=english, data__dev=french)
    assert estimates(recipe, tmp_path)["translate"].items == 100
    rows = [
        made.pair(i, part="train" if i < 100 else estimate.REFUSED, language="fr", query=f"query {i}")
        for i in range(150)
    ]
    [pivot] = estimate.translations(recipe, estimate.read(recipe, ((row, 1) for row in rows), corrected=True))
    assert pivot.distinct == 100


def test_minutes_are_at_the_tighter_limit(make: Any, tmp_path: Path) -> None:
    base = {**FIXED, "translate__pivot": True}
    by_requests = estimates(make(**base, gemini__requests_per_minute=2), tmp_path)["translate"]
    assert by_requests.minutes == by_requests.requests / 2
    by_tokens = estimates(make(**base, gemini__tokens_per_minute=50), tmp_path)["translate"]
    assert by_tokens.minutes == by_tokens.input_tokens / 50
    of_days = make(**base, gemini__requests_per_day=1)
    found = estimates(of_days, tmp_path)["translate"]
    assert found.minutes == (found.requests - 1) * 24 * 60
    said = dry_run.describe([of_days], str(tmp_path / "work"), None)
    assert f"{found.requests - 1} d 00 h at the recipe's limits" in said


def test_the_last_request_of_a_sample_is_shorter_than_those_of_a_run() -> None:
    sample = [Item(f"red shoes {i:02d}", "en", "de") for i in range(11)]
    assert pricing.estimate(Gemini(items_per_request=10), "translate", 100, sample, ()).requests == 10


def test_the_price_is_said_and_an_unknown_one_too(make: Any, tmp_path: Path) -> None:
    known = make(**FIXED, translate__pivot=True, gemini__price={"input": 1000.0, "output": 0.0})
    tokens = estimates(known, tmp_path)["translate"].input_tokens
    said = dry_run.describe([known], str(tmp_path / "work"), None)
    assert f"{tokens / 1000:.4f} USD" in said and "a local estimate (no key is set)" in said
    unknown = make(**FIXED, translate__pivot=True, gemini__model="gemini-9")
    assert estimates(unknown, tmp_path)["translate"].usd is None
    said = dry_run.describe([unknown], str(tmp_path / "work"), None)
    assert "unknown price" in said and "USD" not in said


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (None, "gemini.max_usd is not set"),
        (1e9, "gemini.max_usd 1e+09 is enough"),
        (0.01, "gemini.max_usd 0.01 would stop it"),
    ],
)
def test_the_sum_is_held_against_the_limit(make: Any, tmp_path: Path, limit: float | None, words: str) -> None:
    recipe = make(**FIXED, translate__pivot=True, gemini__price={"input": 1000.0, "output": 0.0}, gemini__max_usd=limit)
    usd = estimates(recipe, tmp_path)["translate"].usd
    assert f"Gemini in all: {usd:.4f} USD; {words}" in dry_run.describe([recipe], str(tmp_path / "work"), None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[GeminiServer]:
    with GeminiServer(Dictionary.from_lexicon(), key="a-key") as running:
        monkeypatch.setenv("GEMINI_API_KEY", "a-key")
        yield running


def test_the_api_counts_where_a_key_is_at_hand(make: Any, tmp_path: Path, server: GeminiServer) -> None:
    recipe = make(**FIXED, translate__pivot=True, gemini__base_url=server.url)
    found = estimates(recipe, tmp_path)["translate"]
    assert found.counted_by.startswith("countTokens")
    assert server.stats.requests == 0, "nothing was asked"
    local = estimates(make(**FIXED, translate__pivot=True, gemini__base_url="http://127.0.0.1:9"), tmp_path)[
        "translate"
    ]
    assert "a local estimate (the API does not answer countTokens now)" in local.counted_by
    ours = estimates(make(**FIXED, translate__pivot=True, gemini__base_url="sandbox://"), tmp_path)["translate"]
    assert ours.counted_by.startswith("the sandbox's server")
    assert found.input_tokens == pytest.approx(local.input_tokens, rel=0.3)
    assert found.input_tokens != local.input_tokens


def test_the_mode_and_its_reason_are_said(make: Any, tmp_path: Path) -> None:
    base = {**FIXED, "translate__pivot": True}
    live = estimates(make(**base), tmp_path)["translate"]
    batch = estimates(make(**base, gemini__mode="batch"), tmp_path)["translate"]
    assert (batch.mode, batch.usd) == ("batch", pytest.approx((live.usd or 0) / 2))
    auto = estimates(make(**base, gemini__mode="auto"), tmp_path)["translate"]
    assert auto.mode == "live"
    assert f"live ({auto.why})" in dry_run.describe([make(**base, gemini__mode="auto")], str(tmp_path / "work"), None)


def test_what_the_audit_asks_is_counted_too(make: Any, tmp_path: Path) -> None:
    base = {**FIXED, "translate__pivot": True, "audit__judge_share": 1.0, "audit__back_translate_share": 0.5}
    found = estimates(make(**base), tmp_path)
    assert found["audit (judge)"].items == found["translate"].items
    assert found["audit (translated back)"].items == pytest.approx(found["translate"].items / 2, abs=1)
    assert (found["audit (judge)"].usd or 0) > 0
    assert set(estimates(make(**FIXED, translate__pivot=True), tmp_path)) == {"translate"}


def test_a_sample_does_not_depend_on_the_order_of_rows() -> None:
    rows = [
        {"pair_id": f"p{i}", "query": f"q{i % 7000}", "language": "en", "part": "train" if i % 3 else None}
        for i in range(20_000)
    ]
    first, second = Rows(), Rows()
    for one, other in zip(rows, rows[::-1], strict=True):
        first.add(one)
        second.add(other)
    assert {row["pair_id"] for row in first.sample.rows} == {row["pair_id"] for row in second.sample.rows}
    assert len(first.questions) == 7000
    assert first.distinct_share(1.0, ["en"]) == pytest.approx(7000 / first.train, rel=0.1)
    assert first.distinct_share(1 / first.train, ["en"]) == pytest.approx(1, abs=0.01)


def test_queries_without_a_tag_count_once_in_the_language_that_they_turn_out_to_be_in(make: Any) -> None:
    known = Rows()
    for i in range(2000):
        known.add(made.pair(i, part="train", language="und", query=f"query {i % 40}"))
    known.originals = known.sample.rows
    for row in known.originals:
        row["language"] = "en" if int(row["query"][6:]) < 30 else "fr"
    rules = {"translate__languages": ["de", "fr"], "translate__sources": []}
    german, french = estimate.translations(make(**rules), known)
    assert (german.rows, german.distinct, french.rows, french.distinct) == (2000, 40, 1500, 30)


def known_of(recipe: Recipe, tmp_path: Path, share: float) -> None:
    """Let the ledger answer a share of what is to be translated."""
    work = str(tmp_path / "work")
    [wanted] = estimate.translations(recipe, estimate.read(recipe, dry_run._pairs(recipe, {}), corrected=True))
    keys = sorted({Item(row["query"], row["language"], wanted.language).key for row in wanted.chosen})
    book = Ledger(ledger.folder(work, recipe.gemini, "translate"), keys)
    book.append(Answer(key, "x", usd=0.001) for key in keys[: round(share * len(keys))])
    book.close()


def test_what_was_answered_is_not_counted_again(make: Any, tmp_path: Path) -> None:
    def recipe(rows: int, **changes: Any) -> Recipe:
        base = {**FIXED, "translate__languages": ["de"], "gemini__price": {"input": 9, "output": 9}}
        found: Recipe = make(**base, translate__rows_per_language=rows, **changes)
        return found

    fresh = {rows: estimates(recipe(rows), tmp_path)["translate"] for rows in (40, 80)}
    assert {one.answered for one in fresh.values()} == {0}
    known_of(recipe(40), tmp_path, 0.5)
    half = estimates(recipe(40), tmp_path)["translate"]
    assert half.items == pytest.approx(fresh[40].items / 2, abs=1)
    assert half.items + (half.answered or 0) == fresh[40].items
    known_of(recipe(40), tmp_path, 1.0)
    whole, raised = (estimates(recipe(rows), tmp_path)["translate"] for rows in (40, 80))
    assert (whole.items, whole.usd, whole.answered) == (0, 0.0, fresh[40].items)
    assert raised.answered == pytest.approx(fresh[40].items, rel=0.2)
    assert raised.items + (raised.answered or 0) == fresh[80].items
    work, spent = str(tmp_path / "work"), ledger.spent(str(tmp_path / "work"), recipe(40).gemini)
    limited = recipe(80, gemini__max_usd=spent + (raised.usd or 0) + 1e-6, audit__judge_share=1.0)
    said = dry_run.describe([limited], work, None)
    assert f"; {raised.answered} more are answered already" in said
    assert re.search(r"audit \(judge\).*; answers already paid for, if any, are counted again", said)
    assert "is enough only if some of that is already paid for" in said


def rows_said(recipe: Recipe, tmp_path: Path) -> int:
    said = dry_run.describe([recipe], str(tmp_path / "work"), None)
    return int(re.search(r"about ([\d,]+) rows of", said)[1].replace(",", ""))  # type: ignore[index]


def test_training_rows_are_those_that_may_be_trained_on_and_translated(make: Any, tmp_path: Path) -> None:
    base = {**FIXED, "train__model": "google/gemma-3-12b-it", "translate__rows_per_language": 10**6}
    rules = make(**base).split
    parts = [part_of(stable_id(normalise(f"red shoes {i // 2:03d}")), rules) for i in range(ROWS)]
    english, french = (sum(part == "train" for i, part in enumerate(parts) if i // 2 % 2 == n) for n in (0, 1))
    assert rows_said(make(**base), tmp_path) == english + french
    assert rows_said(make(**base, split__withhold=["fr"]), tmp_path) == english
    assert rows_said(make(**base, translate__languages=["de", "fr"]), tmp_path) == 3 * english + 2 * french
    of_french = make(**base, translate__languages=["de"], translate__sources=["fr"])
    assert rows_said(of_french, tmp_path) == english + 2 * french


def test_scoring_is_said_of_the_rows_that_are_not_trained_on(make: Any, tmp_path: Path) -> None:
    files = {f"data__{name}": more(tmp_path, name, rows, "en") for name, rows in (("dev", 40), ("test", 30))}
    recipe = make(**FIXED, train__model="google/gemma-3-12b-it", split__tune=0.1, split__holdout=0.2, **files)
    assert f"score: about {round(0.3 * ROWS) + 70} rows of" in dry_run.describe([recipe], str(tmp_path / "work"), None)
    assert "score: about" not in dry_run.describe([recipe], str(tmp_path / "work"), "train")


def test_a_made_training_set_is_counted_and_its_texts_are_those_of_training(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [made.pair(i, pair_id=f"QC-dev-{i}", split="dev", part=None) for i in range(dry_run.SAMPLE_ROWS)]
    pairs = made.finished(
        tmp_path, "split", [*others, made.pair(0, part="train")], tables.PAIRS, splits={"train": 1}, languages={"en": 1}
    )
    parts = ["train"] * 6 + ["tune"] * 4
    mix = made.finished(tmp_path, "mix", [made.pair(i, part=part) for i, part in enumerate(parts)], tables.PAIRS)
    recipe = make(**FIXED, train__model="google/gemma-3-12b-it")
    steps = pipeline.plan(recipe, str(tmp_path / "work"))
    last = [step.stage.name for step in steps].index("mix")
    done = [replace(step, finished=mix if step.stage.name == "mix" else pairs) for step in steps[: last + 1]]
    monkeypatch.setattr(pipeline, "plan", lambda *_: [*done, *steps[last + 1 :]])
    said = dry_run.describe([recipe], str(tmp_path / "work"), None)
    found = re.search(r"about 6 rows of (\d+) tokens", said)
    assert found is not None and int(found[1]) < recipe.prompt.max_tokens / 2


def test_the_plan_names_rows_and_stages_and_writes_nothing(make: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    recipe = make(translate__pivot=True)
    said = dry_run.describe([recipe], str(tmp_path / "work"), "split")
    assert f"rows: train {ROWS}, dev 0, test 0" in said
    assert [name for name in pipeline.STAGE_NAMES if f"{name:<15} to do" in said] == ["ingest", "languages", "split"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_band_that_hardly_any_target_lies_in_is_said(make: Any, tmp_path: Path) -> None:
    recipe = make(embed__model="models/e5-small", negatives__hard_per_positive=1)
    assert "negatives.hard_max_similarity 0.7" in dry_run.describe([recipe], str(tmp_path / "work"), "split")


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_of_many_rows_a_sample_tells_about_all(
    make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    rows, names = 6000, ["id", "language", "origin_query", "category_path", "label"]
    for language, part in {"en": range(0, rows // 3), "fr": range(rows // 3, rows)}.items():
        fields = ((i, language, f"red shoes {i}", "a", i % 2 if i % 10 else "") for i in part)
        lines = [dict(zip(names, one, strict=True)) for one in fields]
        with (tmp_path / f"{language}.{format}").open("w", newline="") as file:
            if format == "csv":
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(lines)
            else:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    recipe = make_recipe(
        data__train=[str(tmp_path / f"*.{format}")], data__dev=[], data__test=[], data__max_rejected_share=0.2, **FIXED
    )
    monkeypatch.setattr(ingest, "PREVIEW_ROWS", 200)
    monkeypatch.setattr(rawfiles, "SAMPLE_RECORDS", 10)
    read = list(dry_run._pairs(recipe, {}))
    assert len(read) < rows / 4 and sum(times for _, times in read) == pytest.approx(0.9 * rows, rel=0.05)
    known = estimate.read(recipe, read, corrected=True)
    assert known.train == pytest.approx(0.9 * rows * (1 - recipe.split.tune - recipe.split.holdout), rel=0.1)
    assert sum(known.questions.values()) == pytest.approx(0.9 * rows, rel=0.05)
    tally = ingest.preview(recipe)
    assert tally.sampled and tally.kept.total() + tally.refused.total() == rows
    assert tally.languages["fr"] == pytest.approx(2 * tally.languages["en"], rel=0.1)
    assert dry_run.SAMPLED in dry_run.describe([recipe], str(tmp_path / "work"), "split")


def test_rows_without_ids_are_named_as_ingest_names_them(make: Any) -> None:
    recipe = make(data__columns__id=None)
    [file] = ingest._files(recipe)
    ingested = [row["pair_id"] for row in ingest._rows(rawfiles.whole(file), recipe)]
    assert [row["pair_id"] for row, _ in dry_run._pairs(recipe, {})] == ingested


def test_of_a_large_artifact_some_shards_tell_about_all(
    make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = made.finished(tmp_path, "ingest", [made.pair(i) for i in range(200)], tables.PAIRS, shards=20)
    for most, rows in ((50, 50), (67, 70)):  # of the 70, the last ten stand for two shards, not three
        monkeypatch.setattr(ingest, "PREVIEW_ROWS", most)
        read = list(dry_run._pairs(make_recipe(), {"ingest": pairs}))
        assert (len(read), sum(times for _, times in read)) == (rows, 200)


def test_rows_that_a_run_would_refuse_are_said_with_place_and_reason(make: Any, tmp_path: Path) -> None:
    lines = (tmp_path / "train.txt").read_text().splitlines()
    lines[6] = lines[6].replace('"label": 0', '"label": "yes"')
    (tmp_path / "train.txt").write_text("\n".join(lines))
    said = dry_run.describe([make(languages__gemini=False)], str(tmp_path / "work"), None)
    assert f"rows: train {ROWS - 1}, dev 0, test 0" in said
    assert f"train: 1 will be rejected; wrong label: {tmp_path}/train.txt, line 7, label: 'yes' is neither" in said


@pytest.mark.parametrize(
    ("replace", "by", "message"),
    [
        ('"origin_query"', '"query"', r"train\.txt: no row has the column 'origin_query'.*data\.columns\.query"),
        ('"label": 0', '"label": "no"', r"100 of 200 rows are rejected.*train\.txt, line 1, label: 'no' is neither"),
        ('"label": 0', '"label": 1', "every label is 1"),
    ],
)
def test_input_that_would_stop_the_run_stops_the_plan(
    make: Any, tmp_path: Path, replace: str, by: str, message: str
) -> None:
    text = (tmp_path / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(text.replace(replace, by))
    with pytest.raises(InputError, match=message):
        dry_run.describe([make(languages__gemini=False)], str(tmp_path / "work"), None)


def test_parts_that_would_stop_the_run_stop_the_plan(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (tmp_path / "train.txt").read_text()
    withheld = make(languages__gemini=False, split__withhold=["en", "fr"])  # which they may not be in, after all
    assert "rows: train" in dry_run.describe([withheld], str(tmp_path / "work"), None)
    with pytest.raises(InputError, match="the train part holds no rows: both classes are needed"):
        dry_run.describe([make(split__withhold=["en", "fr"], **FIXED)], str(tmp_path / "work"), None)
    (tmp_path / "train.txt").write_text(re.sub("red shoes [0-9]+", "red shoes", text))
    chosen = make(languages__gemini=False)
    with pytest.raises(InputError, match="part holds no rows: both classes are needed; add rows to data.train"):
        dry_run.describe([chosen], str(tmp_path / "work"), None)
    assert "rows: train" in dry_run.describe([chosen], str(tmp_path / "work"), "languages")
    monkeypatch.setattr(ingest, "PREVIEW_ROWS", 50)
    monkeypatch.setattr(rawfiles, "SAMPLE_RECORDS", 10)
    assert "estimated" in dry_run.describe([chosen], str(tmp_path / "work"), None), "a sample tells nothing for sure"
