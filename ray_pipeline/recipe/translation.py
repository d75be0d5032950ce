"""Sections of translation: Gemini or a local model, what is translated, what a translation must pass."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ray_pipeline.recipe.section import Count, LanguageCode, Names, Positive, Section, Share, holds_credentials

GeminiModel = Annotated[str, AfterValidator(lambda name: name.removeprefix("models/"))]
"""A model's name, which the API also gives as `models/…`."""


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


class Gemini(Section):
    """How Gemini is spoken to; model, temperature and thinking decide what it answers, the rest how fast."""

    model: GeminiModel = "gemini-3.5-flash-lite"
    base_url: str | None = None
    """Null: GOOGLE_GEMINI_BASE_URL, else Google's own; `sandbox://` starts the local server. Without credentials."""
    sandbox: bool = False
    """Set while the local server stands in for Gemini: what it answers is kept apart."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    thinking_budget: int | None = None
    """Tokens, of the 2.5 models: 0 none, -1 as many as the model likes."""
    thinking_level: Literal["minimal", "low", "medium", "high"] | None = None
    """How much models from 3 on think. Both null: as little as the model allows, which is none for 2.5 Flash."""
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
        if holds_credentials(url or ""):
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
    """Hub name, local folder, `s3://` prefix (each node downloads it once), or `sandbox://…`."""
    revision: str | None = None
    """Pins the version of a hub model."""
    pickled_weights: bool = False
    """Read `pytorch_model.bin` where the model has no safetensors: by torch's loader that takes tensors only and runs
    no code. Changes no translation."""
    trust_remote_code: bool = False
    family: Literal["auto", "nllb", "madlad", "seq2seq", "chat"] = "auto"
    """How it is told the languages. `nllb`: by language tokens (NLLB, M2M100). `madlad`: by `<2de>` before the text.
    `seq2seq`: not at all, the model knows one pair. `chat`: in words (TranslateGemma, Qwen, any instruction model).
    `auto`: by the model's configuration."""
    batch_rows: Positive = 32
    """Queries translated at once."""
    max_new_tokens: Positive = 64
    """The most tokens of one translation; an answer that is cut off there counts as none."""
    num_beams: Positive = 1
    """1 is greedy search."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""


class Translate(Section):
    """Translation augmentation and the English pivot (arXiv 2510.25428)."""

    languages: Names[LanguageCode] = []
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
    max_rejected_share: Share = 0.2
    """More requests without a translation stop the stage. Gemini is asked again by the same command, but for queries
    that it refuses; a local model would say the same again."""
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
    """A multilingual sentence-transformers model; null: `embed.model`, with its revision and the prompt that
    the recipe names or E5 wants."""
    back_translate_share: Share = 0.0
    """Share of the translations that Gemini translates back into the source's language, to compare the two."""
    back_measure: Literal["letters", "meaning"] = "letters"
    """How the source and what came back are compared: by the cosine of their counts of two and three letters in a row,
    to which another word for the same thing is a stranger, or by that of the vectors of `similarity_model`."""
    min_back_similarity: Share = 0.4
    """What the two must have in common, at least; models give values of their own, E5 above 0.9 for the same thing."""
    judge_share: Share = 0.0
    """Share of the translations that Gemini judges: is the meaning kept, would the label still hold?"""
    judge_model: GeminiModel | None = None
    """The Gemini model that judges; null: `gemini.model`."""
    failed: Literal["reject", "keep"] = "reject"
    """`keep`: what fails stays in the table, with the check's name beside it."""
    second_model: GeminiModel | None = None
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
