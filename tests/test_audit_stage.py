"""The whole audit against the local Gemini server: translation back, judge, second model; and the stage on Ray."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline import artifact, audit, shards, tables
from ray_pipeline.artifact import Artifact
from ray_pipeline.audit import stage
from ray_pipeline.errors import ModelError
from ray_pipeline.recipe import Recipe
from ray_pipeline.sandbox import lexicon
from ray_pipeline.sandbox.dictionary import Dictionary
from ray_pipeline.sandbox.gemini_faults import Faults
from ray_pipeline.sandbox.gemini_server import DEFAULT_KEY, GeminiServer
from ray_pipeline.stage import Context
from tests import made

pytestmark = pytest.mark.usefixtures("ray_up")
DICTIONARY = Dictionary.from_lexicon()
WRONG = 0.3


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[GeminiServer]:
    monkeypatch.setenv("GEMINI_API_KEY", DEFAULT_KEY)
    with GeminiServer(DICTIONARY) as running:
        yield running


@pytest.fixture
def recipe(server: GeminiServer, make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        gemini = {"base_url": server.url, "requests_per_minute": 600_000, "tokens_per_minute": 10**9}
        settings = {f"gemini__{name}": value for name, value in gemini.items()}
        return make_recipe(translate__languages=["de", "ko"], **{**settings, **changes})

    return make


def translations(count: int = 120, wrong: float = WRONG) -> list[dict[str, Any]]:
    """English queries into German and Korean; a share of them says something else."""
    nouns, colours = lexicon.load().nouns, lexicon.load().modifiers[:10]
    rows = []
    for i in range(count):
        text = f"{colours[i % 10].terms['en'][0]} {nouns[i % len(nouns)].terms['en'][0]} {i}"
        language = ("de", "ko")[i % 2]
        is_wrong = i < wrong * count
        given = DICTIONARY.mistranslate(text, "en", language, i / count) if is_wrong else None
        rows.append(
            {
                "translation_id": f"{'wrong' if is_wrong else 'right'}-{i}", "purpose": "augment", "source_id": f"s{i}",
                "source_language": "en", "target_language": language, "text": text,
                "translation": given or DICTIONARY.translate(text, "en", language), "model_version": "first",
                "target": nouns[i % len(nouns)].path, "label": i % 3 % 2, "group_id": f"g{i}", "position": i,
                "query_en": None,
            }
        )  # fmt: skip
    return rows


def run(folder: Path, recipe: Recipe, rows: list[dict[str, Any]]) -> Artifact:
    """What a worker makes of three shards of translations, in this process."""
    given = made.finished(folder, "translate", rows, tables.TRANSLATIONS, shards=3)
    url, config = str(folder / "audit" / "f0"), audit.config(recipe)
    with stage.quotas(recipe, str(folder)) as held:
        work = stage.Audit(recipe, str(folder), held)
        counts = artifact.total(
            shards.store(url, source.name, work(shards.read_source(source, None)), tables.AUDITED)
            for source in shards.sources([given])
        )
    extra = stage.account(recipe, counts.extra)
    return checked(artifact.commit(url, "audit", config, {"translate": "f0"}, counts, 0.1, extra), rows)


def run_on_ray(folder: Path, recipe: Recipe, rows: list[dict[str, Any]], name: str) -> Artifact:
    """What the stage makes of them, which workers share."""
    given = made.finished(folder / name, "translate", rows, tables.TRANSLATIONS, shards=3)
    config = audit.config(recipe)
    context = Context(recipe, {"translate": given}, str(folder / "audit" / name), str(folder), config)
    outcome = audit.STAGE.run(context)
    made_here = artifact.commit(
        context.folder, "audit", config, {"translate": "f0"}, outcome.counts, 0.1, outcome.extra
    )
    return checked(made_here, rows)


def checked(found: Artifact, rows: list[dict[str, Any]]) -> Artifact:
    assert found.manifest.rows_in == len(rows) == found.manifest.rows_out + found.manifest.rows_rejected
    return found


def rejected(found: Artifact) -> list[dict[str, Any]]:
    table = found.rejected()
    return [] if table is None else table.to_pylist()


def test_rules_alone_ask_nobody(server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rows = translations()
    rows[-1] = {**rows[-1], "translation": rows[-1]["translation"].replace("119", "118")}
    found = run(tmp_path, recipe(), rows)
    assert found.read().schema.remove_metadata().equals(tables.AUDITED)
    [one] = rejected(found)
    assert (one["translation_id"], one["reason"], one["detail"]) == (
        "right-119",
        "numbers not kept",
        "lost 119; new 118",
    )
    assert server.stats.requests == 0 and found.manifest.requests == 0


def test_the_judge_knows_true_translations(server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    found = run(tmp_path, recipe(audit__judge_share=1.0), translations())
    kept, refused = found.read().to_pylist(), rejected(found)
    assert {row["verdict"] for row in kept} == {"kept"}
    assert Counter(row["translation_id"].split("-")[0] for row in kept) == {"right": 84}
    assert {(row["reason"], row["verdict"]) for row in refused} == {("judged lost", "lost")}
    assert server.stats.asked.total() == 120 and {item[0] for item in server.stats.asked} == {"judge"}
    manifest = found.manifest
    assert manifest.requests == server.stats.requests and manifest.tokens["input"] == server.stats.prompt_tokens
    assert manifest.usd is not None and manifest.usd > 0


def test_a_share_is_judged(server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    found = run(tmp_path, recipe(audit__judge_share=0.4), translations())
    judged = [row for row in [*found.read().to_pylist(), *rejected(found)] if row["verdict"] is not None]
    assert 20 < len(judged) == server.stats.asked.total() < 80
    assert all(row["translation_id"].startswith("wrong") for row in rejected(found))


def test_what_says_something_else_comes_back_as_something_else(
    server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    rules = {"audit__back_translate_share": 1.0, "audit__min_back_similarity": 0.9}
    found = run(tmp_path, recipe(**rules), translations())
    kept, refused = found.read().to_pylist(), rejected(found)
    assert {row["translation_id"].split("-")[0] for row in kept} == {"right"}
    assert len(kept) >= 80, "a few terms of the lexicon are ambiguous"
    assert all(row["back_similarity"] >= 0.9 and row["back_translation"] for row in kept)
    assert {row["reason"] for row in refused} == {"back-translation differs"}
    assert all(row["detail"] == row["back_translation"] != row["text"] for row in refused)
    assert {item[2:] for item in server.stats.asked} == {("de", "en"), ("ko", "en")}


def test_an_undetermined_source_has_no_language_to_go_back_to(
    server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    rows = [{**row, "source_language": "und"} for row in translations(10, 0)]
    found = run(tmp_path, recipe(audit__back_translate_share=1.0), rows)
    assert found.manifest.rows_out == 10 and server.stats.requests == 0


def test_meanings_are_compared_by_a_model(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rules = recipe(audit__min_similarity=0.4, audit__similarity_model="sandbox://embedder")
    found = run(tmp_path, rules, translations())
    kept, refused = found.read().to_pylist(), rejected(found)
    values: dict[str, list[float]] = {"right": [], "wrong": []}
    for row in [*kept, *refused]:
        values[row["translation_id"].split("-")[0]].append(row["similarity"])
    right, wrong = (sorted(values[name]) for name in ("right", "wrong"))
    assert len(right) == 84 and right[42] > 0.5 > wrong[18]
    assert {row["reason"] for row in refused} == {"low similarity"}
    assert all(row["similarity"] < 0.4 for row in refused) and all(row["similarity"] >= 0.4 for row in kept)


def test_what_comes_back_can_be_compared_by_meaning(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rules = {"back_translate_share": 1.0, "back_measure": "meaning", "min_back_similarity": 0.8}
    settings = {f"audit__{name}": value for name, value in rules.items()}
    found = run(tmp_path, recipe(**settings, audit__similarity_model="sandbox://embedder"), translations())
    assert {row["similarity"] for row in found.read().to_pylist()} == {None}, "only what is asked for"
    refused = Counter(row["translation_id"].split("-")[0] for row in rejected(found))
    assert refused["wrong"] >= 30 and refused["right"] <= 4


def test_a_model_that_cannot_be_loaded_is_named(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"audit\.similarity_model .*model: cannot be loaded"):
        run(tmp_path, recipe(audit__min_similarity=0.1, audit__similarity_model=str(broken)), translations(4))


def test_a_second_model_mends_what_failed(server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rules = {"audit__judge_share": 1.0, "audit__second_model": "gemini-2.5-pro"}
    found = run(tmp_path, recipe(**rules), translations())
    rows = found.read().to_pylist()
    assert len(rows) == 120 and rejected(found) == []
    mended = [row for row in rows if row["mended"]]
    assert {row["mended"] for row in mended} == {"judged lost"} and len(mended) == 36
    assert {row["model_version"] for row in mended} == {"gemini-2.5-pro"}
    assert {row["model_version"] for row in rows if not row["mended"]} == {"first"}
    assert all(row["translation"] == DICTIONARY.translate(row["text"], "en", row["target_language"]) for row in rows)
    assert {row["verdict"] for row in rows} == {"kept"}, "the second is judged as the first was"
    assert found.manifest.extra["mended"] == 36


def test_a_second_translation_that_fails_too_leaves_the_first(
    server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    server.faults = Faults(mistranslated=1)
    rules = {"audit__judge_share": 1.0, "audit__second_model": "gemini-2.5-pro"}
    rows = translations()
    found = run(tmp_path, recipe(**rules), rows)
    given = {row["translation_id"]: row["translation"] for row in rows}
    assert {row["translation_id"].split("-")[0] for row in rejected(found)} == {"wrong"}
    assert len(rejected(found)) == 36 and found.manifest.extra["mended"] == 0
    assert all(row["translation"] == given[row["translation_id"]] for row in rejected(found))
    assert {row["model_version"] for row in rejected(found)} == {"first"}


def test_what_fails_is_kept_and_counted_where_the_recipe_says_so(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    found = run(tmp_path, recipe(audit__judge_share=1.0, audit__failed="keep"), translations())
    rows = found.read().to_pylist()
    assert len(rows) == 120 and rejected(found) == []
    assert Counter(row["failed"] for row in rows) == {None: 84, "judged lost": 36}
    assert found.manifest.extra["failed"] == {"judged lost": 36}


def test_questions_without_an_answer_are_no_fault_and_are_counted(
    server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    server.faults = Faults(block_words=("red",))
    rows = translations(20, 0)
    blocked = sum("red" in row["text"] for row in rows)
    found = run(tmp_path, recipe(audit__judge_share=1.0), rows)
    assert found.manifest.rows_out == 20 and 0 < blocked < 20
    assert found.manifest.extra["unanswered"] == {"judge": blocked}
    assert sum(row["verdict"] is None for row in found.read().to_pylist()) == blocked


def test_nothing_is_paid_for_twice(server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    rules = {"audit__judge_share": 0.5, "audit__back_translate_share": 0.5, "runtime__translate_workers": 2}
    run_on_ray(tmp_path, recipe(**rules), translations(), "some")
    asked = server.stats.asked.total()
    more = {"audit__judge_share": 1.0, "audit__back_translate_share": 1.0, "audit__failed": "keep"}
    run_on_ray(tmp_path, recipe(**more), translations(), "all")
    assert asked > 60 and max(server.stats.asked.values()) == 1
    assert server.stats.asked.total() > asked


def test_no_translations(server: GeminiServer, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    given = made.finished(tmp_path, "translate", [], tables.TRANSLATIONS, shards=0)
    context = Context(recipe(audit__judge_share=1.0), {"translate": given}, str(tmp_path / "audit"), str(tmp_path), {})
    assert audit.STAGE.run(context).counts == artifact.Counts()
    assert server.stats.requests == 0
