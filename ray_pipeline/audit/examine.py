"""Every check on the translations of a shard, the cheapest first, and a second try for those that fail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_pipeline.audit import similarity
from ray_pipeline.audit.gemini import Asker
from ray_pipeline.audit.rules import Fault, Row, fault
from ray_pipeline.audit.similarity import Meaning, resemblance
from ray_pipeline.detector import Lingua
from ray_pipeline.recipe import Recipe
from ray_pipeline.text import UNDETERMINED, stable_share

VERDICT_FAULTS = {"label_at_risk": "judged label at risk", "lost": "judged lost"}


@dataclass(frozen=True)
class Finding:
    """What the checks say of one translation."""

    fault: Fault | None = None
    similarity: float | None = None
    back_translation: str | None = None
    back_similarity: float | None = None
    verdict: str | None = None
    mended: str | None = None
    """The check that the first translation failed, where this is the second model's."""
    unanswered: tuple[str, ...] = ()
    """What Gemini was asked about it in vain, which is no fault of the translation."""


class Examiner:
    """Examines translations; several threads may ask it at once. `held` are quotas by the model's name."""

    def __init__(self, recipe: Recipe, workdir: str = "", held: Mapping[str, Any] = {}) -> None:
        self._rules = recipe.audit
        self._detector = Lingua(languages(recipe)) if recipe.audit.check_language else None
        self._meaning = Meaning(recipe) if similarity.wanted(recipe) else None
        self.asker = Asker(recipe, workdir, held)

    def __call__(self, rows: Sequence[Row]) -> tuple[list[Row], list[Finding]]:
        """The rows, some of them with the second model's translation, and what is found of each."""
        findings = self.examine(rows)
        return self._again(rows, findings) if "again" in self.asker else (list(rows), findings)

    def examine(self, rows: Sequence[Row]) -> list[Finding]:
        """What the checks say of each row; a check that costs is spared those that an earlier one found at fault."""
        findings = [Finding(fault(row, self._rules, self._detector)) for row in rows]
        if self._meaning is not None and self._rules.min_similarity is not None:
            self._compare(self._meaning, self._rules.min_similarity, rows, findings)
        if "back" in self.asker:
            self._translate_back(rows, findings)
        if "judge" in self.asker:
            self._judge(rows, findings)
        return findings

    def _compare(self, meaning: Meaning, least: float, rows: Sequence[Row], findings: list[Finding]) -> None:
        """The similarity of every translation, of those at fault too: it shows what another threshold would do."""
        values = meaning([row["text"] for row in rows], [row["translation"] for row in rows])
        for i, value in enumerate(values):
            low = Fault("low similarity", f"{value:.3f}") if value < least else None
            findings[i] = replace(findings[i], similarity=value, fault=findings[i].fault or low)

    def _translate_back(self, rows: Sequence[Row], findings: list[Finding]) -> None:
        chosen = sample(rows, findings, self._rules.back_translate_share)
        places = [i for i in chosen if rows[i]["source_language"] != UNDETERMINED]
        texts = self.asker.back([rows[i] for i in places])
        measure = self._meaning if self._meaning and self._rules.back_measure == "meaning" else resemblance
        values = measure([rows[i]["text"] for i in places], [text or "" for text in texts])
        for i, text, value in zip(places, texts, values, strict=True):
            if text is None:
                findings[i] = _unanswered(findings[i], "back")
                continue
            low = Fault("back-translation differs", text) if value < self._rules.min_back_similarity else None
            findings[i] = replace(findings[i], back_translation=text, back_similarity=value, fault=low)

    def _judge(self, rows: Sequence[Row], findings: list[Finding]) -> None:
        places = sample(rows, findings, self._rules.judge_share)
        for i, verdict in zip(places, self.asker.judge([rows[i] for i in places]), strict=True):
            if verdict is None:
                findings[i] = _unanswered(findings[i], "judge")
                continue
            bad = Fault(VERDICT_FAULTS[verdict]) if verdict in VERDICT_FAULTS else None
            findings[i] = replace(findings[i], verdict=verdict, fault=bad)

    def _again(self, rows: Sequence[Row], findings: Sequence[Finding]) -> tuple[list[Row], list[Finding]]:
        """The second model's translations in place of those at fault, where they pass the same checks."""
        faults = {i: found.fault for i, found in enumerate(findings) if found.fault is not None}
        answers = self.asker.again([rows[i] for i in faults])
        tried = [
            {**rows[i], "translation": text or "", "model_version": version}
            for i, (text, version) in zip(faults, answers, strict=True)
        ]
        rows, findings = list(rows), list(findings)
        for (i, first), row, finding in zip(faults.items(), tried, self.examine(tried), strict=True):
            if finding.fault is None:
                rows[i], findings[i] = row, replace(finding, mended=first.reason)
        return rows, findings


def languages(recipe: Recipe) -> list[str]:
    """The languages that a translation may be in, rightly or wrongly."""
    return sorted({*recipe.languages.candidates, *recipe.translate.languages, "en"})


def sample(rows: Sequence[Row], findings: Sequence[Finding], share: float) -> list[int]:
    """The places of a share of the rows, by their ids, so that a larger share holds a smaller one; none at fault."""
    sound = (i for i, found in enumerate(findings) if found.fault is None)
    return [i for i in sound if stable_share("audit", rows[i]["translation_id"]) < share]


def _unanswered(finding: Finding, question: str) -> Finding:
    return replace(finding, unanswered=(*finding.unanswered, question))
