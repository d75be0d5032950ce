"""Sections of the training set: duplicates, vectors, negatives, the mix, the rows that models contradict."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_pipeline.recipe.section import Count, LanguageCode, Names, OpenShare, Origin, Positive, Section, Share


class Dedupe(Section):
    """Exact duplicates of the normalised (query, target), and what to do where their labels disagree."""

    conflicts: Literal["drop", "majority", "first"] = "majority"
    """A tie of `majority` is dropped."""
    remove_leaks: bool = False
    """Drop training rows whose normalised (query, target) stands in dev or test; counted in any case."""
    near_duplicates: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep only the first of those training rows with the same normalised target and label whose queries share so much:
    Jaccard similarity of what three characters in a row they have. 0.8 finds plurals and typing errors of longer
    queries. Training rows that resemble a row of tune, holdout, dev or test so much are counted as near leaks, and
    dropped with `remove_leaks`. Null: not looked for."""


class Embed(Section):
    """The sentence-transformers model for mining; code that comes with a model is never run."""

    model: str = "intfloat/multilingual-e5-large"
    """Hub name, local folder, `s3://` prefix (each node downloads it once), or `sandbox://embedder`."""
    revision: str | None = None
    """Pins the version of a hub model."""
    pickled_weights: bool = False
    """Read `pytorch_model.bin` where a model, also `audit.similarity_model`, has no safetensors, as BAAI/bge-m3: by
    torch's loader that takes tensors only and runs no code. Changes no vector."""
    prompt: str | None = None
    """Put before each target. Null: `passage: ` for E5 models, by the model's name; for others what their own
    configuration has for documents, as a rule nothing."""
    query_prompt: str | None = None
    """Put before each query, where queries are embedded. Null: `query: ` for E5 models; for others what their own
    configuration has for queries."""
    normalise: bool = True
    """Every vector is brought to length 1."""
    dimension: Positive | None = None
    """Only so many values of each vector are kept, the first ones, for a model that was trained so (Matryoshka)."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the model computes in; `float16` needs a GPU. Vectors are kept in float16 in any case."""
    max_tokens: Positive | None = None
    """Longer texts are cut; null: at the model's own limit."""

    @property
    def is_e5(self) -> bool:
        """Whether the model's name says that it is one of E5, whose cosines lie between about 0.7 and 1."""
        return re.search(r"(^|[-_])e5([-_]|$)", self.model.rstrip("/").rpartition("/")[2].lower()) is not None

    @property
    def prompts(self) -> dict[str, str | None]:
        """What is put before targets and before queries; null: the words of the model's own configuration.

        An E5 model that follows instructions has no usual words.
        """
        usual = self.is_e5 and "instruct" not in self.model.lower()
        target, query = ("passage: ", "query: ") if usual else (None, None)
        return {
            "target": target if self.prompt is None else self.prompt,
            "query": query if self.query_prompt is None else self.query_prompt,
        }


class Negatives(Section):
    """Negatives mined by cosine similarity to the positive target, or to the query.

    A target that the same normalised query stands with anywhere, be it in dev or test, or in a row that `split` or
    `dedupe` left out, is never its negative; labels are not looked at.
    """

    easy_per_positive: Annotated[float, Field(ge=0)] = 0.0
    """Easy negatives wanted per positive training row; 0.1 makes one for every tenth."""
    hard_per_positive: Annotated[float, Field(ge=0)] = 0.0
    random_per_positive: Annotated[float, Field(ge=0)] = 0.0
    """Drawn without a look at similarity: a control."""
    origins: Annotated[Names[Literal["original", "translated"]], Field(min_length=1)] = ["original"]
    """Positives that negatives are mined for (paper: those of the data). With `translated`, the translated languages
    have negatives too, so that the label does not go with the language; but a translated query is known only with its
    own rows, not with those of the query that it was translated from, so more of its negatives may be relevant."""
    max_rows_per_language: Positive | None = None
    """Negatives of all kinds wanted for the positives of one language, at most."""
    negative_share: OpenShare | None = None
    """Share of label 0 in train that mining may bring about: fewer are wanted where it would be more. Null: any."""
    anchor: Literal["target", "query"] = "target"
    """What similarities are to: the positive's target (paper), or its query, which is then embedded too."""
    candidates: Literal["any", "same_language", "other_language"] = "any"
    """Targets of the positive's language, or of others; a target has those of all rows of train that it stands in."""
    branch: Literal["any", "same", "other"] = "any"
    """QC: only targets of the positive target's branch of the category tree, or only of other branches."""
    branch_levels: Positive = 1
    """Targets that agree in so many levels from the top are of one branch."""
    easy_method: Literal["quantile", "minimum"] = "quantile"
    """`minimum` takes the very lowest (paper), which are the same few outliers for everyone, without a cap."""
    easy_quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """An easy negative is one of this share with the lowest similarities among 128 candidates by chance."""
    easy_max_per_target: Positive = 20
    """No target serves more often than this as an easy negative of the whole corpus."""
    hard_min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.3
    hard_max_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.7
    """Above it a near match is taken for a false negative and left alone. For E5 models, whose cosines lie between
    about 0.7 and 1, the band has to lie there too, e.g. 0.8 to 0.9."""
    hard_margin: Annotated[float, Field(ge=0, le=2)] | None = None
    """With `anchor: query`: a negative's similarity is below that of the positive target by this at least."""
    hard_relative_margin: Share | None = None
    """As `hard_margin`, as a share of the absolute similarity of the positive target."""
    hard_skip_top: Count = 0
    """So many of the nearest that would do are passed over: they may be relevant after all."""
    hard_top_k: Positive = 50
    """Neighbours looked at per positive: the nearest of those that do not exceed `hard_max_similarity` and the margins.
    Where the query stands with all of them already, more are looked at.

    An approximate `index` gives the nearest of all, the positive's own target among them, and those above the band are
    left out afterwards: a low band needs so large a number that it is reached, or `index: exact`.
    """
    index: Literal["exact", "ivf", "hnsw"] = "exact"
    """How neighbours are found: by comparing all, or by an approximation of faiss, its recall measured and stated."""
    index_recall: OpenShare = 0.99
    """What an approximation is set to reach on a sample of the corpus: the share of the true neighbours."""
    corpus_rows_at_once: Positive | None = None
    """A worker holds no more vectors than this. It mines as many shards of pairs at a time as it has memory for, 64 at
    most, and reads all vectors for them together: twice for each kind, and twice more for hard ones where a query
    stands with all that is nearest. So 60 GB, 2,000 shards, 20 at a time and four readings make 2,000 / 20 x 4 x 60 GB
    = 24 TB. Null: it holds all. Either way a node has no more workers than there is memory for.

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
    def _queries_have_vectors(self) -> Self:
        if self.anchor == "query" and "translated" in self.origins:
            raise ValueError(
                "negatives.origins translated needs negatives.anchor target: only the queries of originals are embedded"
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
    """The most that an origin may have of all training rows; rows beyond it are dropped."""
    max_rows_per_language: Positive | dict[LanguageCode, Count] | None = None
    """One number for all languages, or one for each that has a cap."""
    max_share_per_language: dict[LanguageCode, OpenShare] = {}
    positive_share: OpenShare | None = None
    """Rows of the larger class are dropped until this share is met; null leaves the classes as they are."""
    seed: int = 0


class SelfValidation(Section):
    """Training rows that models trained without them contradict: found by folds, then dropped or counted."""

    folds: Annotated[int, Field(ge=2)] | None = None
    """Trainings on all folds but one, each judging the one left out; null: no such filter."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """A row is contradicted where its fold's model gives the other label at least this probability; below
    1 - `train.label_smoothing` / 2, which is the most that a model is taught to give."""
    drop: bool = True
    """Leave such rows out of training; otherwise they are counted and kept."""
    origins: Names[Origin] = ["easy_negative", "hard_negative", "original", "random_negative", "translated"]
    """Rows of other origins are trusted."""
    epochs: Positive | None = None
    """The epochs of the folds' trainings; null: as many as train.epochs."""
    seed: int = 0
