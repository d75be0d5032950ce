"""Correction of language tags: script and a local detector decide the clear cases, Gemini the rest."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from ray_pipeline import artifact, runtime, shards, storage, tables
from ray_pipeline.artifact import Counts
from ray_pipeline.detector import Detector, Lingua, unknown
from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini import fanout
from ray_pipeline.gemini.fanout import Fanout
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.questions import Questions, fan_out
from ray_pipeline.recipe import Languages, Recipe
from ray_pipeline.scripts import SCRIPTS, SHARED, scripts
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import UNDETERMINED, is_language_code, language_code

DECIDED = "decided"
"""The column that says which language a query is in where script or detector can tell; null where Gemini is to."""
STRAY = 0.01
"""Up to this share of the rows, a tag that is no candidate is taken for a mistake."""


def detector(rules: Languages) -> Detector:
    """The local detector over those candidates that it knows; raises RecipeError where nobody could tell the others."""
    own = {code for code in rules.candidates for script in SCRIPTS.get(code, ()) if _settled([script], rules) == code}
    own |= {code for code in rules.candidates if _is_alone(rules)}
    if not rules.gemini and (missing := [code for code in unknown(rules.candidates) if code not in own]):
        raise RecipeError(
            f"languages.candidates: {', '.join(missing)} cannot be told by script or local detector: set "
            "languages.gemini true to ask Gemini, or languages.correct false to leave tags as they are"
        )
    return Lingua(rules.candidates)


def decide(text: str, tag: str, rules: Languages, detector: Detector) -> str | None:
    """The language of a query where that is clear; null where it is not.

    A script in which one candidate is written settles it, and any that it may be in where it is the only one. Else the
    detector decides when it is sure, the query long enough and no candidate of that script unknown to it; where it
    agrees with the tag, the tag stands. Latin words beside words of a candidate's own script are names, which tell
    nothing: `iphone чохол` is as `чохол`.
    """
    found = scripts(text)
    if not found:
        return tag if tag in rules.candidates else UNDETERMINED
    ranked = [script for script, _ in found.most_common()]
    if _is_alone(rules) and (_written_in(ranked, rules) or not SHARED.isdisjoint(ranked)):
        return rules.candidates[0]
    if language := _settled(ranked, rules):
        return language
    if ranked[0] == "CJK":
        return tag if tag in ("ja", "zh") else None
    own = [script for script in ranked if script not in SHARED]
    if own[:1] == ["CJK"] and _written_in(own[:1], rules):
        return tag if tag in {"ja", "zh"} & set(rules.candidates) else None
    if _written_in(own, rules):
        ranked, text = own, " ".join(word for word in text.split() if not scripts(word).keys().isdisjoint(own))
    best, confidence = next(iter(detector.confidences(text)), (None, 0.0))
    if best == tag:
        return best
    sure = confidence >= rules.min_confidence and len(text) >= rules.min_characters
    return best if sure and not unknown(_written_in(ranked, rules), ranked) else None


def _is_alone(rules: Languages) -> bool:
    """Whether queries are in one language only."""
    return len(set(rules.candidates)) == 1


def _settled(ranked: Iterable[str], rules: Languages) -> str | None:
    """The one candidate that is written in the first of some scripts that tells any; null where there are several."""
    for script in ranked:
        # Han alone is Chinese, Japanese or Korean, whichever of them is a candidate.
        written = [] if script in SHARED or script == "CJK" else _written_in([script], rules)
        if written:
            return written[0] if len(written) == 1 and written[0] in SCRIPTS else None
    return None


def _written_in(some: Collection[str], rules: Languages) -> list[str]:
    """Candidates that are written in one of some scripts, or may be, where theirs is not known."""
    return [code for code in dict.fromkeys(rules.candidates) if SCRIPTS.get(code, set(some)) & set(some)]


def expect_candidates(rules: Languages, tags: Mapping[str, int]) -> None:
    """Raise RecipeError where more rows than are tagged by mistake would lose their language; `tags`: rows of each."""
    least = max(1, STRAY * sum(tags.values()))
    lost = {tag: rows for tag, rows in tags.items() if rows > least and tag not in (UNDETERMINED, *rules.candidates)}
    if rules.correct and lost:
        most = sorted(lost.items(), key=lambda item: -item[1])
        named = next((tag for tag, _ in most if not is_language_code(tag)), None)
        alias = f"{{{json.dumps(named or most[0][0], ensure_ascii=False)}: {rules.candidates[0]}}}"
        if named is not None:
            raise RecipeError(
                f"{named!r} is no language code: map it by languages.aliases, such as {alias}, or set "
                "data.columns.language: null"
            )
        counted = ", ".join(f"{tag} ({rows} rows)" for tag, rows in most)
        raise RecipeError(
            f"languages.candidates lacks {counted}: such rows would be given one of {', '.join(rules.candidates)}; "
            "name every language that queries are in, map tags that mean one of these by languages.aliases, such as "
            f"{alias}, or set languages.correct false to leave tags as they are"
        )


def with_decisions(rules: Languages, table: pa.Table) -> pa.Table:
    """A shard of pairs with the column DECIDED."""
    local, questions = detector(rules), _questions(table)
    found = {question: decide(*question, rules, local) for question in dict.fromkeys(questions)}
    return table.append_column(DECIDED, pa.array([found[question] for question in questions], pa.string()))


def undecided(table: pa.Table) -> dict[tuple[str, str], Item]:
    """What is left for Gemini of a shard with decisions: items by query and tag."""
    left = table.filter(table.column(DECIDED).is_null())
    return {question: Item(question[0]) for question in _questions(left)}


def _questions(table: pa.Table) -> list[tuple[str, str]]:
    """The query and the tag of each row."""
    return list(zip(table.column("query").to_pylist(), table.column("language").to_pylist(), strict=True))


class Correction:
    """Corrects the language column of a shard of pairs with decisions."""

    def __init__(self, recipe: Recipe, workdir: str, held: Any = None) -> None:
        self._rules = recipe.languages
        self._fanout = None
        if self._rules.gemini:
            workers = recipe.runtime.translate_workers
            self._fanout = Fanout(recipe.gemini, "detect_language", workdir, held, self._rules.candidates, workers)

    def __call__(self, table: pa.Table) -> shards.Result:
        asked, told = undecided(table), dict[tuple[str, str], str | None]()
        extra = {"asked": float(len(asked))}
        if self._fanout is not None:
            self._fanout.skip(table.num_rows - len(asked))
            answers = self._fanout.answer(list(asked.values()))
            told = {question: self._accept(answers[item.key].text) for question, item in asked.items()}
            extra["unanswered"] = float(sum(answers[item.key].text is None for item in asked.values()))
            extra |= self._fanout.counts()
        questions, decided = _questions(table), table.column(DECIDED).to_pylist()
        languages = [own or told.get(one) or one[1] for own, one in zip(decided, questions, strict=True)]
        extra["corrected"] = float(sum(new != old for new, (_, old) in zip(languages, questions, strict=True)))
        made = table.drop_columns([DECIDED])
        column = made.schema.get_field_index("language")
        return shards.Result(made.set_column(column, "language", pa.array(languages, pa.string())), extra=extra)

    def _accept(self, answer: str | None) -> str | None:
        """Gemini's answer if it is one of the possible ones; else the tag stands."""
        code = language_code(answer)
        return code if code in self._rules.candidates or (code == UNDETERMINED and answer) else None


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity."""
    rules = recipe.languages
    if not rules.correct:
        return {"correct": False}
    model = fanout.identity(recipe.gemini, "detect_language") if rules.gemini else None
    return {**rules.model_dump(), "gemini": model}


def run(context: Context) -> Outcome:
    """Write the pairs again with corrected languages; raises RecipeError where the candidates lack a language."""
    recipe, pairs = context.recipe, context.inputs["ingest"]
    expect_candidates(recipe.languages, pairs.manifest.extra.get("languages", {}))
    if recipe.languages.correct and recipe.languages.gemini:
        return _ask(context)
    counts = shards.map_shards(
        shards.sources([pairs]),
        partial(_local, recipe, context.workdir) if recipe.languages.correct else _keep,
        context.folder,
        tables.PAIRS,
        workers=runtime.worker_count(recipe.runtime.map_workers),
        label="languages",
    )
    return Outcome(counts, _tally(counts))


def _ask(context: Context) -> Outcome:
    """Decide what is clear and bring equal queries into one shard, so that each is asked about once; then ask."""
    recipe, workdir = context.recipe, context.workdir
    sources = _decided(context)
    questions = Questions("detect_language", recipe.languages.candidates, lambda table: [*undecided(table).values()])
    counts = fan_out(context, sources, questions, partial(Correction, recipe, workdir), tables.PAIRS, "languages")
    return Outcome(counts, _tally(counts) | fanout.account(recipe.gemini, counts.extra))


def _local(recipe: Recipe, workdir: str) -> shards.Work:
    """Corrects a shard by what can be told without Gemini."""
    work = Correction(recipe, workdir)
    return lambda table: work(with_decisions(recipe.languages, table))


def _decided(context: Context) -> list[Source]:
    """Pairs with decisions, in shards by query; the detector runs where the shuffle begins, on every CPU."""
    folder, inputs = storage.join(context.folder, "decided"), shards.sources([context.inputs["ingest"]])
    buckets = shards.bucket_count(sum(source.rows for source in inputs), context.recipe.runtime.shard_rows)

    def make() -> None:
        write = partial(_write, folder)
        shuffled = _bucketed(inputs, context.recipe.languages, buckets)
        shards.shuffle(shuffled, write, buckets=buckets, label="languages: by query")

    return shards.once(folder, make)


def _bucketed(inputs: Sequence[Source], rules: Languages, buckets: int) -> Any:
    def bucketed(table: pa.Table) -> pa.Table:
        made = with_decisions(rules, table)
        return made.append_column(shards.BUCKET, shards.text_buckets(made.column("query"), buckets))

    return shards.dataset(inputs, bucketed)


def _write(folder: str, table: pa.Table, name: str) -> Counts:
    return artifact.write_shard(folder, name, table.sort_by("pair_id"), None, table.num_rows)


def _tally(counts: Counts) -> dict[str, Any]:
    return {key: int(counts.extra.get(key, 0)) for key in ("asked", "unanswered", "corrected")}


def _keep() -> shards.Work:
    return shards.Result


STAGE = Stage("languages", ("ingest",), config, run, schema_version=5)
