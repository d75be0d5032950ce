"""One task's recipe: its sections, and what must hold between them."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ray_pipeline.recipe.data import Data, Languages, Sandbox, Split
from ray_pipeline.recipe.model import Evaluate, Prompt, Score, Train
from ray_pipeline.recipe.runtime import Runtime, Storage
from ray_pipeline.recipe.section import Section
from ray_pipeline.recipe.spelling import Spelling
from ray_pipeline.recipe.training_set import Dedupe, Embed, Mix, Negatives, SelfValidation
from ray_pipeline.recipe.translation import Audit, Gemini, Translate
from ray_pipeline.text import LEVEL_SEPARATOR

TARGET_COLUMNS = {"QC": "category_path", "QI": "item_title"}
"""The competition's, by task."""


class Compare(Section):
    """A second run with some values changed, judged on the same holdout rows; every artifact that agrees is shared."""

    name: str = "without translation"
    set: dict[str, Any] = Field(min_length=1)
    """Dotted keys and their values, e.g. `translate.languages: []`."""


class Recipe(Section):
    """One task, from raw files to report."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    task: Literal["QC", "QI"]
    data: Data
    sandbox: Sandbox = Sandbox()
    languages: Languages = Languages()
    split: Split = Split()
    gemini: Gemini = Gemini()
    translate: Translate = Translate()
    audit: Audit = Audit()
    dedupe: Dedupe = Dedupe()
    embed: Embed = Embed()
    negatives: Negatives = Negatives()
    mix: Mix = Mix()
    self_validation: SelfValidation = SelfValidation()
    prompt: Prompt = Prompt()
    train: Train = Train()
    other: "Recipe | None" = None
    """The other task's recipe, from which `train.start` or `train.joint` takes: filled in by the command."""
    score: Score = Score()
    evaluate: Evaluate = Evaluate()
    compare: Compare | None = None
    notice: str | None = None
    """A caveat that the report shows at its top."""
    storage: Storage = Storage()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _a_gpu_for_each_of_several(self) -> Self:
        if self.train.workers > 1 and self.runtime.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"runtime.gpus_per_worker {self.runtime.gpus_per_worker:g} with train.workers {self.train.workers}: "
                "DeepSpeed takes one GPU for each of several workers: set 1, or train.workers 1"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.prompt.pivot and not self.translate.pivot:
            raise ValueError("prompt.pivot needs translate.pivot: the prompt has no English query to show otherwise")
        if self.prompt.level_markers and self.task != "QC":
            raise ValueError("prompt.level_markers needs task QC: item titles have no levels")
        if self.split.by == "branch" and self.task != "QC":
            raise ValueError("split.by branch needs task QC: item titles have no category tree")
        if self.evaluate.threshold == "top_category" and self.task != "QC":
            raise ValueError("evaluate.threshold top_category needs task QC: item titles have no category tree")
        if self.train.start == self.task:
            raise ValueError(f"train.start {self.task} is the recipe's own task: name the other one, or null")
        if self.negatives.branch != "any" and self.task != "QC":
            raise ValueError("negatives.branch needs task QC: item titles have no category tree")
        taught = 1 - self.train.label_smoothing / 2
        if self.self_validation.folds and self.self_validation.confidence >= taught:
            raise ValueError(
                f"self_validation.confidence {self.self_validation.confidence:g} is never reached: with "
                f"train.label_smoothing {self.train.label_smoothing:g} models learn probabilities up to {taught:g}; "
                "lower one of them"
            )
        for field, named in (("split.withhold", self.split.withhold), ("translate.sources", self.translate.sources)):
            unknown = sorted(set(named) - set(self.languages.candidates))
            if self.languages.correct and unknown:
                raise ValueError(
                    f"{field} names {unknown}, which languages.candidates lacks, so no row has it: add it there, or "
                    "leave it out"
                )
        lost = set(self.translate.sources) & set(self.split.withhold)
        if lost:
            raise ValueError(f"translate.sources names {sorted(lost)}, which split.withhold keeps from training")
        return self

    @property
    def target_column(self) -> str:
        """The raw files' column that holds the target."""
        return self.data.columns.target or TARGET_COLUMNS[self.task]

    @property
    def spelling(self) -> Spelling:
        """How the raw files write levels and languages."""
        separator = self.data.level_separator if self.task == "QC" else LEVEL_SEPARATOR
        return Spelling(level_separator=separator, aliases=self.languages.aliases)

    @property
    def raw_columns(self) -> frozenset[str]:
        """All columns of the raw files that are looked at."""
        named = self.data.columns.model_dump(exclude_none=True)
        return frozenset([*named.values(), self.target_column])
