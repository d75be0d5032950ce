"""A recipe: everything that one task's run is made of, read from YAML.

A section's fields change what the stage of that name produces and so belong to the artifact's identity. What only
changes how fast or where the work is done lives in `runtime` and in the limits of `gemini`, and does not.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from ray_pipeline.errors import RecipeError
from ray_pipeline.text import ISO_639_1, LANGUAGE_ALIASES

ENVIRONMENT_PREFIX = "RECIPE__"
"""`RECIPE__TRAIN__EPOCHS=1` in the environment overrides `train.epochs`."""

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


def _language(code: Any) -> str:
    """A code that a language tag of the data can be brought to; raises ValueError for any other."""
    if code is False:
        raise ValueError('YAML reads no as false: write "no"')
    if isinstance(code, str) and code in LANGUAGE_ALIASES:
        raise ValueError(f"{code!r} is not that language's ISO 639-1 code: write {LANGUAGE_ALIASES[code]}")
    if not isinstance(code, str) or not (code in ISO_639_1 or re.fullmatch("[a-z]{3}", code)):
        raise ValueError(f"{code!r} is no ISO 639-1 code: write such as de or ja")
    return code


LanguageCode = Annotated[str, BeforeValidator(_language)]
Origin = Literal["original", "translated", "easy_negative", "hard_negative", "random_negative"]
"""Where a training row comes from."""
QueryPrefix = Literal["auto", "always", "never"]
Engine = Literal["transformers", "vllm"]
DeepSpeed = Literal["zero0", "zero2", "zero2_offload", "zero3", "zero3_offload"]
"""The settings in cluster/deepspeed."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Columns(Section):
    """Which column of the raw files holds what; the defaults are the competition's."""

    id: str | None = "id"
    """Unique within a split; null: the row's position in the input is used."""
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
    """Rows to predict for the submission; labels, where present, are used for evaluation only."""
    test: list[str] = []
    """As dev."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = "auto"
    """`auto`: by the file's ending; `.txt` and `.json` are JSON Lines."""
    columns: Columns = Columns()
    max_rejected_share: Share = 0.05
    """The run stops when a larger share of a split's rows is rejected."""
    rejected_prediction: Literal[0, 1] | None = None
    """What the submission says of dev and test rows that were rejected; null: such a row stops the submission."""


class Sandbox(Section):
    """The size of the sample shop, for recipes that name `sandbox://shop/…`."""

    seed: int = 7
    train_rows: Positive = 4000
    dev_rows: Positive = 400
    test_rows: Positive = 400


class Languages(Section):
    """Correction of language tags (paper, step 1)."""

    candidates: list[LanguageCode] = Field(
        default=["en", "fr", "es", "ko", "pt", "ja", "de", "it", "pl", "ar", "th", "id", "vi"], min_length=1
    )
    """The languages that a query can be in; ISO 639-1."""
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
    withhold: list[LanguageCode] = []
    """Languages whose labelled rows are kept from training and tune, and evaluated on holdout as if unseen."""
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.tune + self.holdout >= 1:
            raise ValueError("split.tune and split.holdout together must be below 1, or no row is left for training")
        if self.tune == 0 or self.holdout == 0:
            raise ValueError("split.tune and split.holdout must both be above 0: threshold and headline need them")
        return self


class Price(Section):
    """USD per million tokens of a model, for one that the price table lacks or prices otherwise."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    thinking: Annotated[float, Field(ge=0)] | None = None
    """Null: as output."""
    cached: Annotated[float, Field(ge=0)] | None = None
    """Input that the server had in its cache; null: as input."""
    batch_input: Annotated[float, Field(ge=0)] | None = None
    """In batch mode; null: unknown, so batch mode cannot be priced."""
    batch_output: Annotated[float, Field(ge=0)] | None = None


def _holds_credentials(url: str) -> bool:
    parts = urlsplit(url)
    return parts.username is not None or bool(parts.query)


class Gemini(Section):
    """How Gemini is spoken to; model, temperature and thinking decide what it answers, the rest how fast."""

    model: str = "gemini-3.5-flash-lite"
    base_url: str | None = None
    """Null: GOOGLE_GEMINI_BASE_URL, else Google's own; `sandbox://` starts the local server. Without credentials."""
    sandbox: bool = False
    """Set while the local server stands in for Gemini: what it answers is kept apart."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    thinking_budget: int | None = None
    """Tokens, of the 2.5 models: 0 none, -1 as many as the model likes."""
    thinking_level: Literal["minimal", "low", "medium", "high"] | None = None
    """Of the models from 3 on. Both null: as little as the model allows, which is none for 2.5 Flash."""
    model_version: str | None = None
    """What the server should say that it answers with; null: anything that begins with `model`."""
    other_version: Literal["report", "stop"] = "report"
    """What to do when it says something else."""
    mode: Literal["live", "batch", "auto"] = "live"
    """`batch`: jobs at half price, then live calls for what they leave; `auto`: by `deadline_hours` and price."""
    deadline_hours: Annotated[float, Field(gt=0)] = 24.0
    """Batch jobs that have not ended by then are cancelled, and what they lack is asked live."""
    batch_requests: Positive = 1000
    """Requests of one batch job, at most; a project of the lowest tier may have three million tokens waiting."""
    poll_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time between two looks at the batch jobs."""
    items_per_request: Positive = 40
    """Queries in one request, at most."""
    tokens_per_request: Positive = 4000
    """Input tokens of one request's queries, at most, by local estimate."""
    concurrency: Positive | None = None
    """Requests under way at once, over all workers; null: as many as start within five seconds at the limits."""
    requests_per_minute: Positive = 1000
    """The project's limit for this model."""
    tokens_per_minute: Positive = 1_000_000
    """The project's limit of input tokens a minute."""
    requests_per_day: Positive | None = None
    """The project's limit; days end at midnight, Pacific time."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """For one request."""
    attempts: Positive = 5
    """Tries of one request on server errors and lost connections; 429 spends none."""
    outage_seconds: Annotated[float, Field(ge=0)] = 600.0
    """So long a server that has answered before may fail until the run stops; one that never has stops it at once."""
    max_usd: Annotated[float, Field(gt=0)] | None = None
    """Requests end before the working folder's answers cost more than this; needs a model with a known price."""
    price: Price | None = None
    """In place of the price table's row."""

    @property
    def stands_for(self) -> str:
        """Whose answers these are, for what is kept of them; empty for Gemini's."""
        return "sandbox" if self.sandbox or (self.base_url or "").startswith("sandbox://") else ""

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        if _holds_credentials(url or ""):
            raise ValueError(
                "gemini.base_url must not hold credentials, which the report would show: set GOOGLE_GEMINI_BASE_URL in "
                "the environment"
            )
        return url

    @model_validator(mode="after")
    def _one_way_to_think(self) -> Self:
        if self.thinking_level is not None and self.thinking_budget is not None:
            raise ValueError("gemini.thinking_level and gemini.thinking_budget exclude each other: set one")
        return self


class LocalTranslator(Section):
    """A translation model on the workers themselves, for data that may not be sent out."""

    model: str
    """Hub name, local folder, or `sandbox://…`; its weights must be safetensors."""
    revision: str | None = None
    """Of a hub model: pins it."""
    trust_remote_code: bool = False
    family: Literal["auto", "nllb", "madlad", "seq2seq", "chat"] = "auto"
    """How it is told the languages. `nllb`: by language tokens (NLLB, M2M100). `madlad`: by `<2de>` before the text.
    `seq2seq`: not at all, the model knows one pair. `chat`: in words (TranslateGemma, Qwen, any instruction model).
    `auto`: by the model's configuration."""
    batch_rows: Positive = 32
    """Queries translated at once."""
    max_new_tokens: Positive = 64
    """Of one translation; an answer that is cut off there counts as none."""
    num_beams: Positive = 1
    """1 is greedy search."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""


class Translate(Section):
    """Translation augmentation (paper, step 2) and the English pivot (1st team)."""

    languages: list[LanguageCode] = []
    """Languages to translate training queries into; empty: no augmentation."""
    rows_per_language: Positive | dict[LanguageCode, Positive] = 45_000
    """Translated rows per language, at most; or a number for each of `languages`."""
    sources: list[LanguageCode] = []
    """Source languages; empty: all seen ones."""
    pivot: bool = False
    """Also translate every query of every split to English, as `query_en`."""
    translator: Literal["gemini", "local"] = "gemini"
    """`local`: the model of `local`; no query leaves the workers."""
    local: LocalTranslator | None = None
    """Needed by translator local."""
    seed: int = 0

    @model_validator(mode="after")
    def _no_circle(self) -> Self:
        if self.sources and set(self.languages) & set(self.sources):
            both = sorted(set(self.languages) & set(self.sources))
            raise ValueError(f"translate.languages and translate.sources both name {both}: a source cannot be a target")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(f"translate.languages names a language twice: {self.languages}")
        return self

    @model_validator(mode="after")
    def _has_its_translator(self) -> Self:
        if (self.translator == "local") != (self.local is not None):
            raise ValueError(
                "translate.translator local and translate.local.model go together: name a translation model, or neither"
            )
        return self

    @model_validator(mode="after")
    def _counts_every_language(self) -> Self:
        rows = self.rows_per_language
        if isinstance(rows, dict) and set(rows) != set(self.languages):
            raise ValueError(
                f"translate.rows_per_language names {sorted(rows)}, translate.languages {sorted(self.languages)}: "
                "give a number for each, or one number for all"
            )
        return self


class Audit(Section):
    """Checks that a translation has to pass, from rules to a judge, and what becomes of one that fails."""

    min_length_ratio: Annotated[float, Field(ge=0)] = 0.2
    """Characters of the translation over characters of the source, scripts weighted."""
    max_length_ratio: Annotated[float, Field(gt=0)] = 5.0
    keep_numbers: bool = True
    """The numbers of the source must stand in the translation, and no others."""
    keep_codes: bool = True
    """So must its model numbers: up to three Latin letters and digits after them, such as RTX4090."""
    brands: list[str] = []
    """Names that must be kept, in translations into languages written in Latin letters; others transliterate them."""
    check_script: bool = True
    """The translation must be in a script of its language."""
    check_language: bool = True
    """It must not be in another language, as far as a local detector (lingua) can tell; in Latin letters only."""
    min_language_confidence: Share = 0.95
    """What the detector must give the other language, of the two: it is poor on short queries, so it has to be sure."""
    min_language_characters: Count = 16
    """Shorter translations are not given to the detector; words that stand in the source are left out before."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine of the vectors of source and translation, at least; null: not computed. -1 computes and refuses nothing.
    What is low depends on the model: look at the report's means before you set it."""
    similarity_model: str | None = None
    """A multilingual sentence-transformers model; null: `embed.model`, with its revision and prompt."""
    back_translate_share: Share = 0.0
    """Share of the translations that Gemini translates back into the source's language, to compare the two."""
    back_measure: Literal["letters", "meaning"] = "letters"
    """How the source and what came back are compared: by the cosine of their counts of two and three letters in a row,
    to which another word for the same thing is a stranger, or by that of the vectors of `similarity_model`."""
    min_back_similarity: Share = 0.4
    """What the two must have in common, at least; models give values of their own, E5 above 0.9 for the same thing."""
    judge_share: Share = 0.0
    """Share of the translations that Gemini judges: is the meaning kept, would the label still hold?"""
    judge_model: str | None = None
    """The Gemini model that judges; null: `gemini.model`."""
    failed: Literal["reject", "keep"] = "reject"
    """`keep`: what fails stays in the table, with the check's name beside it."""
    second_model: str | None = None
    """A Gemini model that translates again what failed; taken where it passes the same checks."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_length_ratio >= self.max_length_ratio:
            raise ValueError("audit.min_length_ratio must be below audit.max_length_ratio")
        return self

    @model_validator(mode="after")
    def _names(self) -> Self:
        if not all(any(c.isalnum() for c in brand) for brand in self.brands):
            raise ValueError("audit.brands holds a name without a letter, which would stand in every text: take it out")
        return self


class Dedupe(Section):
    """Exact duplicates of the normalised (query, target), and what to do where their labels disagree."""

    conflicts: Literal["drop", "majority", "first"] = "majority"
    """A tie of `majority` is dropped."""
    remove_leaks: bool = False
    """Drop training rows whose normalised (query, target) stands in dev or test; counted in any case."""
    near_duplicates: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of training rows with the same normalised target, only the first of those whose queries share so much stays:
    Jaccard similarity of what three characters in a row they have. 0.8 finds plurals and typing errors of longer
    queries. Training rows that resemble a row of tune, holdout, dev or test so much are counted as near leaks, and
    dropped with `remove_leaks`. Null: not looked for."""


class Embed(Section):
    """The sentence-transformers model for mining; code that comes with a model is never run."""

    model: str = "intfloat/multilingual-e5-large"
    """Hub name, local folder, or `sandbox://embedder`."""
    revision: str | None = None
    """Of a hub model: pins it."""
    prompt: str = ""
    """Put before each target. E5 wants `passage: ` here and `query: ` before queries; BGE-M3 wants nothing."""
    query_prompt: str = ""
    """Put before each query, where queries are embedded."""
    normalise: bool = True
    """Every vector is brought to length 1."""
    dimension: Positive | None = None
    """Only so many values of each vector are kept, the first ones, for a model that was trained so (Matryoshka)."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the model computes in; `float16` needs a GPU. Vectors are kept in float16 in any case."""
    max_tokens: Positive | None = None
    """Longer texts are cut; null: at the model's own limit."""


class Negatives(Section):
    """Negatives mined by cosine similarity to the positive target (paper, step 4), or to the query.

    A target that the same normalised query stands with anywhere in train is never its negative.
    """

    easy_per_positive: Annotated[float, Field(ge=0)] = 0.0
    """Easy negatives wanted per positive training row; 0.1 makes one for every tenth."""
    hard_per_positive: Annotated[float, Field(ge=0)] = 0.0
    random_per_positive: Annotated[float, Field(ge=0)] = 0.0
    """Drawn without a look at similarity: a control."""
    max_rows_per_language: Positive | None = None
    """Negatives of all kinds wanted for the positives of one language, at most."""
    negative_share: OpenShare | None = None
    """Share of label 0 in train that mining may bring about: fewer are wanted where it would be more. Null: any."""
    anchor: Literal["target", "query"] = "target"
    """What similarities are to: the positive's target (paper), or its query, which is then embedded too."""
    candidates: Literal["any", "same_language", "other_language"] = "any"
    """Of the positive's language, or not: a target has the languages of all rows of train that it stands in."""
    branch: Literal["any", "same", "other"] = "any"
    """QC: only targets of the positive target's branch of the category tree, or only of other branches."""
    branch_levels: Positive = 1
    """Targets that agree in so many levels from the top are of one branch."""
    easy_method: Literal["quantile", "minimum"] = "quantile"
    """`minimum` takes the very lowest (paper), which are the same few outliers for everyone, without a cap."""
    easy_quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Of 128 candidates by chance, an easy negative is one of this share with the lowest similarities."""
    easy_max_per_target: Positive = 20
    """No target serves more often than this as an easy negative of the whole corpus."""
    hard_min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.3
    hard_max_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.7
    """Above it a near match is taken for a false negative and left alone."""
    hard_margin: Annotated[float, Field(ge=0, le=2)] | None = None
    """With `anchor: query`: a negative's similarity is below that of the positive target by this at least."""
    hard_relative_margin: Share | None = None
    """As `hard_margin`, as a share of the absolute similarity of the positive target."""
    hard_skip_top: Count = 0
    """So many of the nearest that would do are passed over: they may be relevant after all."""
    hard_top_k: Positive = 50
    """Neighbours looked at per positive, itself among them where the anchor is the target."""
    index: Literal["exact", "ivf", "hnsw"] = "exact"
    """How neighbours are found: by comparing all, or by an approximation of faiss, its recall measured and stated."""
    index_recall: OpenShare = 0.99
    """What an approximation is set to reach on a sample of the corpus: the share of the true neighbours."""
    corpus_rows_at_once: Positive | None = None
    """A worker holds no more vectors than this and reads them again for each of its shards; null: it holds all.

    Changes memory and time, not what is found.
    """
    seed: int = 0

    @property
    def wanted(self) -> bool:
        """Whether any are to be mined."""
        return self.easy_per_positive > 0 or self.hard_per_positive > 0 or self.random_per_positive > 0

    @model_validator(mode="after")
    def _band(self) -> Self:
        if self.hard_min_similarity >= self.hard_max_similarity:
            raise ValueError("negatives.hard_min_similarity must be below negatives.hard_max_similarity")
        if self.hard_skip_top >= self.hard_top_k:
            raise ValueError("negatives.hard_skip_top must be below negatives.hard_top_k: nothing would be left")
        return self

    @model_validator(mode="after")
    def _margins(self) -> Self:
        if self.anchor == "target" and (self.hard_margin, self.hard_relative_margin) != (None, None):
            raise ValueError(
                "negatives.hard_margin and negatives.hard_relative_margin need negatives.anchor query: a margin is "
                "kept from the similarity of query and positive target, and a target's similarity to itself is 1"
            )
        return self

    @model_validator(mode="after")
    def _index(self) -> Self:
        if self.index != "exact" and (self.candidates, self.branch, self.corpus_rows_at_once) != ("any", "any", None):
            raise ValueError(
                f"negatives.index {self.index} holds and searches the whole corpus: set negatives.index exact, or "
                "leave out negatives.candidates, negatives.branch and negatives.corpus_rows_at_once"
            )
        return self


class Mix(Section):
    """The training set: caps and shares per origin and language, class ratio; in this order, until all are met."""

    max_rows_per_origin: dict[Origin, Count] = {}
    max_share_per_origin: dict[Origin, OpenShare] = {}
    """Of all training rows; rows of the origin are dropped until it has no more."""
    max_rows_per_language: Positive | dict[LanguageCode, Count] | None = None
    """One number for all languages, or one for each that has a cap."""
    max_share_per_language: dict[LanguageCode, OpenShare] = {}
    positive_share: OpenShare | None = None
    """Rows of the larger class are dropped until this share is met; null leaves the classes as they are."""
    seed: int = 0

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for name in ("max_share_per_origin", "max_share_per_language"):
            if sum(getattr(self, name).values()) >= 1:
                raise ValueError(f"mix.{name}: the shares must leave something for the rest: their sum is below 1")
        return self


class SelfValidation(Section):
    """Training rows that models trained without them contradict: found by folds, then dropped or counted."""

    folds: Annotated[int, Field(ge=2)] | None = None
    """Trainings on all folds but one, each judging the one left out; null: no such filter."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """A row is contradicted where its fold's model gives the other label at least this probability."""
    drop: bool = True
    """Leave such rows out of training; otherwise they are counted and kept."""
    origins: list[Origin] = ["original", "translated", "easy_negative", "hard_negative", "random_negative"]
    """Rows of other origins are trusted."""
    epochs: Positive | None = None
    """Of the folds' trainings; null: as many as train.epochs."""
    seed: int = 0


class Prompt(Section):
    """What the model reads."""

    template: Literal["zero_shot", "four_steps"] = "zero_shot"
    """`four_steps`: the instruction names translation, intent, match and judgement (2nd team); three times as long,
    which costs little where what prompts begin with is computed once."""
    language_tag: bool = False
    """The query follows its language's code: `[de] rote schuhe`."""
    level_markers: bool = False
    """QC: `[L1] home [L2] kitchen` instead of the raw path (EAR-MP, DILAB)."""
    pivot: bool = False
    """The query is followed by ` - ` and its English translation (1st team)."""
    max_tokens: Positive = 128
    """Longer prompts are cut: the target first, then the query; counted."""


class Lora(Section):
    """Low-rank adapters by peft."""

    rank: Positive = 32
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Literal["attention", "all_linear"] = "all_linear"
    rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction of the weights apart (DoRA, arXiv 2402.09353); slower."""


class Train(Section):
    """LoRA fine-tuning of a classifier under Ray Train and DeepSpeed (paper, step 5)."""

    model: str = "google/gemma-3-12b-it"
    """Hub name, local folder, or `sandbox://…`."""
    revision: str | None = None
    trust_remote_code: bool = False
    precision: Literal["float32", "bfloat16", "int8", "nf4"] = "nf4"
    """Bases by bitsandbytes: `nf4`, 4-bit with double quantisation, bfloat16 compute; `int8`, 8-bit with outliers
    kept in bfloat16 (LLM.int8(), arXiv 2208.07339)."""
    head: Literal["classification", "yes_no"] = "classification"
    """`classification`: a new layer, trained along with the adapter. `yes_no`: how much more likely the base itself
    finds one word than another after the prompt; nothing but the adapter is trained."""
    answers: list[str] = Field(default=[" yes", " no"], min_length=2, max_length=2)
    """The two words of head yes_no, relevant first, as they follow the prompt; a single token each."""
    lora: Lora = Lora()
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    epochs: Positive = 5
    batch_rows: Positive = 32
    """Rows of one optimiser step, over all workers and accumulation steps."""
    micro_batch_rows: Positive = 8
    """Rows of one forward and backward pass on one worker."""
    micro_batch_tokens: Positive | None = None
    """Tokens of such a pass, padding included, in place of `micro_batch_rows`: as many rows as they hold, at least one,
    so short prompts go many at once. The step keeps its rows and its loss. Null: by rows."""
    share_prefix: bool | None = None
    """Compute the tokens that all prompts begin with once per pass instead of once per row. The gradient is the same
    as long as `lora.dropout` is 0; with dropout, one mask for those tokens serves all rows of a pass. Null: where it is
    the same, and not under ZeRO-3, which would gather the weights once more for it. Never done with gradient
    checkpointing and for models that it was not tested with."""
    warmup_share: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluations_per_epoch: Positive = 1
    patience: Positive = 1
    """Evaluations without a better one, by `selection`, before training stops."""
    gradient_checkpointing: bool = False
    workers: Positive = 1
    """Ray Train workers; with it the result changes, so it is part of the identity."""
    seed: int = 0
    deepspeed: str = "zero2"
    """Settings of cluster/deepspeed (zero0, zero2, zero2_offload, zero3, zero3_offload), or the path of a JSON file.

    ZeRO-2 shares out the optimiser, ZeRO-3 the weights too, once they are loaded: the base has to fit one GPU all the
    same. With offload they rest in the CPU's memory. Gradients are whole on each GPU until a step ends.
    """
    scheduler: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls after the warm-up."""
    positive_weight: Annotated[float, Field(gt=0)] | Literal["balanced"] = 1.0
    """Of a relevant row's loss; `balanced`: irrelevant rows per relevant one of the training rows."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Labels s/2 and 1 - s/2 in place of 0 and 1."""
    selection: Literal["f1", "auroc", "average_precision", "loss"] = "f1"
    """The tune figure by which the best evaluation is chosen and training stops; of equal ones the lower tune loss.

    All but f1 do without a threshold.
    """
    max_steps: Positive | None = None
    """Stop after so many optimiser steps, with an evaluation; the schedule ends there too. For trying things out."""
    overfit_rows: Annotated[int, Field(ge=2)] | None = None
    """Train on so many rows only, half of each label: a model that cannot learn them by heart is set up wrongly."""
    trackers: list[Literal["wandb", "mlflow"]] = []
    """Where else the learning curves go, while training runs; never part of an artifact's identity. Their addresses and
    keys come from the environment of the nodes: WANDB_API_KEY, or WANDB_MODE=offline; MLFLOW_TRACKING_URI."""
    deterministic: bool = False
    """Slower operations that give the same bits each time on the same GPU, where torch has one; else it warns."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Train so many adapters, each without one fold of the groups of the train part, and average their scores (1st
    team). Each is stopped by its own fold's original rows; none of them looks at the tune part, from which threshold
    and calibration of the averaged scores are learnt. Takes so many times as long. Null: one adapter, on all rows."""
    start: str | None = None
    """Begin with another adapter in place of an empty one (1st team): `QC` or `QI`, that of the other task's recipe in
    the same command; or an adapter's folder or `s3://` prefix. Base, head and `lora` must agree, and so must the
    splits, so that it has seen no query of this recipe's tune and holdout."""
    joint: bool = False
    """Learn from the train part of the other task's recipe in the same command, too; the instruction, which names the
    task, tells the rows apart. Everything is still chosen and judged by this task's own rows. Base and splits must
    agree, as for `start`."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError("fp16 is not offered, Gemma-3 overflows in it: set train.precision bfloat16, or float32")
        return value

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.quantised and self.deepspeed.startswith("zero3"):
            raise ValueError(
                f"train.precision {self.precision} does not work with train.deepspeed {self.deepspeed}: take zero2, or "
                "bfloat16"
            )
        if self.lora.dora and self.deepspeed.startswith("zero3"):
            raise ValueError(
                f"train.lora.dora does not work with train.deepspeed {self.deepspeed}, which puts away the weights that"
                " DoRA reads: take zero2, or rslora"
            )
        if self.micro_batch_tokens is None and self.batch_rows % (self.micro_batch_rows * self.workers):
            raise ValueError("train.batch_rows must be a multiple of train.micro_batch_rows times train.workers")
        if self.batch_rows % self.workers:
            raise ValueError("train.batch_rows must be a multiple of train.workers")
        if self.answers[0] == self.answers[1]:
            raise ValueError("train.answers must be two different words: relevant first")
        return self

    @property
    def quantised(self) -> bool:
        """Whether bitsandbytes holds the base."""
        return self.precision in ("int8", "nf4")

    @property
    def zero_stage(self) -> int:
        """Of DeepSpeed; 3 for a file of one's own, so that what does not go with ZeRO-3 is left out."""
        return int(self.deepspeed[4]) if self.deepspeed in get_args(DeepSpeed) else 3

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step and worker; with `micro_batch_tokens`, the most that there can be."""
        rows = 1 if self.micro_batch_tokens else self.micro_batch_rows
        return self.batch_rows // (rows * self.workers)

    @property
    def shares_prefix(self) -> bool:
        """Whether what prompts begin with is computed once per pass.

        Under ZeRO-3 only if asked for: it would gather the weights once more for it, and keep them on the way back.
        """
        usual = self.lora.dropout == 0 and self.zero_stage < 3
        wanted = usual if self.share_prefix is None else self.share_prefix
        return wanted and not self.gradient_checkpointing


class Score(Section):
    """What computes the scores; how wide that is done stands in `runtime`."""

    engine: Engine = "transformers"
    """`vllm`: the adapter merged into its base and read by vLLM, which needs the extra `vllm`, an environment or image
    of its own, and whole GPUs. Scores differ by rounding, so it is part of the identity."""


class Evaluate(Section):
    """Calibration and threshold, learnt from the tune part and nothing else, and intervals."""

    calibration: Literal["none", "temperature", "isotonic"] = "none"
    """How scores become probabilities. `temperature`: their log-odds divided by one number, which keeps their order.
    `isotonic`: a rising staircase, for a thousand rows of tune and more."""
    threshold: Literal["task", "language", "top_category"] = "task"
    """What has a threshold of its own; `top_category` (QC) is the first level of the path. What tune lacks has the
    task's."""
    threshold_min_rows: Positive = 200
    """Languages or categories with fewer rows of tune, or one class only, have the task's threshold."""
    threshold_shrinkage: Annotated[float, Field(ge=0)] = 400.0
    """Rows of tune at which a language's or category's own threshold weighs as much as the task's; 0: no shrinkage."""
    bootstrap_draws: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0


class Compare(Section):
    """A second run with some values changed, judged on the same holdout rows; every artifact that agrees is shared."""

    name: str = "without translation"
    set: dict[str, Any] = Field(min_length=1)
    """Dotted keys and their values, e.g. `translate.languages: []`."""


class Storage(Section):
    """Where `s3://` is and how it is reached, in place of the environment; never part of an artifact's identity.

    Keys have no place here: they come from the environment (AWS_ACCESS_KEY_ID, …) or the profile's file on each node,
    and of the two the environment's are taken.
    """

    endpoint_url: str | None = None
    """Of a store other than AWS; null: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS."""
    region: str | None = None
    """Null: AWS_REGION, else AWS_DEFAULT_REGION."""
    addressing: Literal["path", "virtual"] | None = None
    """Whether a bucket stands in a url's path or before its host; null: as AWS and most other stores want it."""
    profile: str | None = None
    """Whose credentials and role to take from the AWS configuration of each node; null: AWS_PROFILE."""
    anonymous: bool = False
    """Requests go unsigned, which public buckets allow."""

    @field_validator("endpoint_url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "http://none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("storage.endpoint_url must be a url such as https://s3.example.com")
        if _holds_credentials(url or ""):
            raise ValueError("storage.endpoint_url must not hold credentials: they come from the environment")
        return url


class Runtime(Section):
    """Where and how wide the work runs; never part of an artifact's identity."""

    address: str = "local"
    """`local` starts Ray here; `auto` joins the cluster that the job runs on."""
    cpus: Positive | None = None
    """CPUs of a local Ray; null: all."""
    shard_rows: Positive = 50_000
    """Rows of one Parquet shard, about."""
    map_workers: Positive | None = None
    """Workers of the CPU stages; null: one per CPU of the cluster."""
    translate_workers: Positive = 1
    """Workers that speak to Gemini, or hold the local translator."""
    translate_cpus: Annotated[float, Field(gt=0)] = 0.5
    """CPUs of a worker that speaks to Gemini: it mostly waits."""
    translate_resource: str | None = None
    """A custom Ray resource of which such a worker takes one: only nodes that offer it are used, or started, for it."""
    embed_workers: Positive = 1
    score_workers: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each embedding, training and scoring worker; 0 runs on CPU."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    accelerator_type: str | None = None
    """The GPUs' type by Ray's name, e.g. `A100` or `L4`; null: any. Only nodes with such GPUs are used, or started."""
    wait_seconds: Annotated[float, Field(gt=0)] = 1200
    """How long a stage waits for a cluster's nodes that its workers need, until it gives up with a message."""
    score_batch_rows: Positive = 64
    score_batch_tokens: Positive | None = None
    """Tokens of one batch, padding included, in place of `score_batch_rows`; null: by rows."""
    score_share_prefix: bool = True
    """Compute the tokens that all prompts begin with once per shard, for models that this was tested with; exact."""
    score_query_prefix: QueryPrefix = "auto"
    """With it, compute the tokens of a query once for all its rows, which need not stand together; exact too. `auto`:
    where that spares a seventh of the work, as with five rows of each query and targets that are not much longer."""
    embed_batch_rows: Positive = 256
    max_failures: Count = 3
    """Restarts of training after a lost worker."""

    @model_validator(mode="after")
    def _has_the_resource(self) -> Self:
        if self.translate_resource is not None and self.address == "local":
            raise ValueError(
                "runtime.translate_resource needs a cluster whose nodes offer it: set runtime.address, or leave it out"
            )
        return self


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
        lost = set(self.translate.sources) & set(self.split.withhold)
        if lost:
            raise ValueError(f"translate.sources names {sorted(lost)}, which split.withhold keeps from training")
        return self

    @property
    def target_column(self) -> str:
        """The raw files' column that holds the target."""
        return self.data.columns.target or {"QC": "category_path", "QI": "item_title"}[self.task]

    @property
    def raw_columns(self) -> frozenset[str]:
        """All columns of the raw files that are looked at."""
        named = self.data.columns.model_dump(exclude_none=True)
        return frozenset([*named.values(), self.target_column])


def read(path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe file; `overrides` are `dotted.key=value`, values in YAML; the environment comes before them.

    Raises RecipeError where the file, an override or a value is wrong.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name an existing recipe file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML ({error})") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: is empty or not a mapping; see jobs/recipes/ for examples")
    for key, value in _environment_overrides(os.environ if environment is None else environment):
        _set(raw, key, value)
    for override in overrides:
        key, _, value = override.partition("=")
        _set(raw, key, _parse(key, value))
    found = validate(raw, str(path))
    if found.compare is not None:
        variant(found, found.compare.set)  # else wrong fields would be found when the recipe itself is done
    return found


def variant(recipe: Recipe, changes: Mapping[str, Any], name: str = "compare") -> Recipe:
    """The recipe with some dotted keys set to other values and without its comparison; errors call it by its name."""
    raw = recipe.model_dump()
    raw["compare"] = None
    for key, value in changes.items():
        _set(raw, key, value)
    return validate(raw, f"recipe {recipe.name}, {name}")


def validate(raw: Mapping[str, Any], where: str) -> Recipe:
    """Check a mapping; raises RecipeError with one line per wrong field."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise problem(error, where, Recipe) from error


def problem(error: ValidationError, where: str, kind: type[BaseModel]) -> RecipeError:
    """What is wrong with the fields of a file of some kind, one line each."""
    lines = [f"{where}: {len(error.errors())} wrong field(s)"]
    lines += [f"  {_location(item['loc'])}{_message(item, kind)}" for item in error.errors()]
    return RecipeError("\n".join(lines))


def _message(item: ErrorDetails, kind: type[BaseModel]) -> str:
    if item["type"] == "list_type":
        return "must be a list, such as [a, b]"
    if item["type"] != "extra_forbidden":
        return item["msg"].removeprefix("Value error, ")
    section, _, name = ".".join(map(str, item["loc"])).rpartition(".")
    fields = _fields(kind)
    beside = [field.rpartition(".")[2] for field in fields if field.rpartition(".")[0] == section]
    near = [f"{section}.{match}".removeprefix(".") for match in difflib.get_close_matches(name, beside, n=1)]
    near = near or [field for field in fields if field.endswith(f".{name}")]
    known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(beside)}"
    return f"there is no such field; {known}"


def _fields(section: type[BaseModel], beginning: str = "") -> list[str]:
    """The dotted names of a section's fields and of those below them."""
    found = []
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) or [field.annotation]
        if Recipe in kinds:  # filled in by a command
            continue
        found.append(beginning + name)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _fields(kind, f"{beginning}{name}.")
    return found


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _location(location: Sequence[int | str]) -> str:
    """Dotted, without what pydantic calls the types that a field could have had."""
    parts = [str(part) for part in location if not re.match(r"constrained-|\w*\[", str(part))]
    return ".".join(parts) + ": " if parts else ""


def _environment_overrides(environment: Mapping[str, str]) -> list[tuple[str, Any]]:
    chosen = sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX))
    keys = {name: name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".") for name in chosen}
    return [(keys[name], _parse(keys[name], environment[name])) for name in chosen]


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{key}={text}: the value is not YAML ({error})") from error


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        inner = raw.get(section)
        if inner is None:
            inner = raw[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{dotted}: {section} is not a section of the recipe")
        raw = inner
    raw[last] = value
