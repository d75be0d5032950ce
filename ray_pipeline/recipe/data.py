"""Sections of the raw data: where it is, its languages, its parts."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ray_pipeline.recipe.section import Count, LanguageCode, Names, Positive, Section, Share
from ray_pipeline.text import LEVEL_SEPARATOR


def _as_text(key: Any) -> str:
    """A key that YAML may take for a number, in lower case; raises ValueError for what it takes for a truth or null."""
    if key is None:
        raise ValueError('YAML reads null and ~ as nothing: write "null"')
    if isinstance(key, bool):
        raise ValueError('YAML reads yes, no, on and off as true and false: write "yes"')
    return str(key).strip().lower()


Key = Annotated[str, BeforeValidator(_as_text)]


SPLITS = ("train", "dev", "test")
"""The splits of the raw files: the fields of `Data` that name them."""


class Columns(Section):
    """Which column of the raw files holds what; the defaults are the competition's."""

    id: str | None = "id"
    """Unique within a split; null: a row goes by its file's number in the split, from 0, and its line: `0-17`."""
    language: str | None = "language"
    """Null: every row starts as `und`, and the languages stage decides."""
    query: str = "origin_query"
    target: str | None = None
    """Null: `category_path` for QC, `item_title` for QI."""
    label: str = "label"
    task: str | None = "task"
    """A column that, where present, must name the recipe's task."""


class Data(Section):
    """The raw files: paths, globs or folders, local, `s3://`, or `sandbox://shop/…` (the sample shop)."""

    train: list[str] = Field(min_length=1)
    """Labelled rows."""
    dev: list[str] = []
    """Rows to predict for the submission; labels, where present, are used for evaluation only, and what is none
    (`-1`, `?`) counts as no label."""
    test: list[str] = []
    """As dev."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = "auto"
    """`auto`: by the file's ending; `.txt` and `.json` are JSON Lines."""
    columns: Columns = Columns()
    level_separator: str = Field(default=LEVEL_SEPARATOR, min_length=1)
    """What joins the levels of a QC target, such as `" > "`. A comma counts without a space after it only: a level's
    own name may hold ", ". What else is set is replaced by such a comma when the files are read."""
    labels: dict[Key, Literal[0, 1] | None] = {}
    """What graded or worded labels mean, such as `{E: 1, S: 1, C: 0, I: 0}`, in capitals or not; null: no label. A row
    of train with a label that it lacks is refused. Empty: labels are 0 and 1, or false and true."""
    max_rejected_share: Share = 0.05
    """The run stops when a larger share of a split's rows is rejected."""
    rejected_prediction: Literal[0, 1] | None = None
    """What the submission says of dev and test rows that were rejected, by `ingest`, or by `score` because they have
    no finite score; null: such a row stops the submission."""


class Sandbox(Section):
    """The size of the sample shop, for recipes that name `sandbox://shop/…`."""

    seed: int = 7
    train_rows: Positive = 4000
    dev_rows: Positive = 400
    test_rows: Positive = 400


class Languages(Section):
    """Correction of language tags."""

    candidates: list[LanguageCode] = Field(
        default=["en", "fr", "es", "ko", "pt", "ja", "de", "it", "pl", "ar", "th", "id", "vi"], min_length=1
    )
    """The languages that a query can be in; ISO 639-1."""
    aliases: dict[Key, LanguageCode] = {}
    """Tags of the data that are no language codes, such as a shop's locales, and their languages: `{us: en}`.
    A tag of several parts that is none of them goes by its first: `us_en` by `us`."""
    correct: bool = True
    """False: tags are only normalised (`vn` to `vi`)."""
    min_confidence: Share = 0.65
    """The local detector decides a row only at this confidence or above; the rest goes to Gemini, or keeps its tag."""
    min_characters: Count = 6
    """Shorter queries in a script that several candidates share are never decided locally."""
    gemini: bool = True
    """Ask Gemini where the local detector disagrees with the tag without being sure."""


class Split(Section):
    """The three parts of the labelled rows: train, tune, holdout; made once, by group."""

    tune: Share = 0.1
    """Share of groups for early stopping, threshold and calibration."""
    holdout: Share = 0.1
    """Share of groups for the headline; looked at by nothing else."""
    by: Literal["query", "branch"] = "query"
    """`branch` (QC): also no branch of the category tree is in two parts; rows that would cross are dropped."""
    branch_levels: Positive = 2
    """How many first levels of a path make its branch."""
    withhold: Names[LanguageCode] = []
    """Languages whose labelled rows are kept from training and tune, and evaluated on holdout as if unseen."""
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.tune + self.holdout >= 1:
            raise ValueError("split.tune and split.holdout together must be below 1, or no row is left for training")
        if self.tune == 0 or self.holdout == 0:
            raise ValueError("split.tune and split.holdout must both be above 0: threshold and headline need them")
        return self
