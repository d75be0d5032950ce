"""Easy and hard negatives: other targets for a positive's query, chosen by cosine similarity to its target.

Easy (paper, step 4): from the lowest similarities. Hard: the nearest within a band, below a guard against false
negatives. Positives are originals of the train part; a known positive of the query is never its negative.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_pipeline import recipe as recipes
from ray_pipeline import runtime, shards, tables
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.recipe import Recipe
from ray_pipeline.stage import Context, Outcome, Stage
from ray_pipeline.text import normalise, stable_id, stable_number, stable_share

Vectors = npt.NDArray[np.float32]
EASY_CANDIDATES = 64
"""Drawn per positive; the bottom few percent of the corpus is among so many without a look at all of it."""
QUANTILE_SAMPLE = 200_000
"""Pairs drawn to estimate the quantile of similarities."""


@dataclass(frozen=True)
class Corpus:
    """Candidate targets `texts [n]` with unit vectors `vectors [n, d]`."""

    texts: Sequence[str]
    vectors: Vectors

    def low_similarity(self, quantile: float, seed: int) -> float:
        """The similarity below which this share of random pairs lies."""
        generator = np.random.default_rng(seed)
        first, second = generator.integers(0, len(self.texts), (2, QUANTILE_SAMPLE))
        sample = np.einsum("ij,ij->i", self.vectors[first], self.vectors[second])
        return float(np.quantile(sample[first != second], quantile)) if len(self.texts) > 1 else -1.0


def easy(
    corpus: Corpus, anchors: Vectors, known: Sequence[set[str]], rules: recipes.Negatives, seed: int
) -> list[tuple[int, float] | None]:
    """For each anchor vector `[m, d]` the (index, similarity) of an easy negative, or null if none was drawn.

    Of some random candidates, those in the bottom quantile are taken from the lowest up, none more often than
    `easy_max_per_target`, none that is in the anchor's `known` normalised texts; what is chosen joins them.
    """
    generator = np.random.default_rng(seed)
    limit = corpus.low_similarity(rules.easy_quantile, rules.seed)
    normal = [normalise(text) for text in corpus.texts]
    used: Counter[int] = Counter()
    found: list[tuple[int, float] | None] = []
    for vector, positives in zip(anchors, known, strict=True):
        drawn = generator.integers(0, len(corpus.texts), EASY_CANDIDATES)
        similarities = corpus.vectors[drawn] @ vector
        order = np.argsort(similarities, kind="stable")
        fits = (
            int(drawn[i])
            for i in order
            if similarities[i] <= limit
            and used[int(drawn[i])] < rules.easy_max_per_target
            and normal[drawn[i]] not in positives
        )
        chosen = next(fits, None)
        if chosen is not None:
            used[chosen] += 1
            positives.add(normal[chosen])
        found.append(None if chosen is None else (chosen, float(corpus.vectors[chosen] @ vector)))
    return found


def hard(
    corpus: Corpus, anchors: Vectors, known: Sequence[set[str]], rules: recipes.Negatives
) -> list[tuple[int, float] | None]:
    """For each anchor vector `[m, d]` the (index, similarity) of its nearest candidate within the band, or null.

    None is in the anchor's `known` normalised texts; what is chosen joins them.
    """
    import faiss

    index = faiss.IndexFlatIP(corpus.vectors.shape[1])
    index.add(corpus.vectors)
    similarities, neighbours = index.search(anchors, min(rules.hard_top_k, len(corpus.texts)))
    found = []
    for near, scores, positives in zip(neighbours, similarities, known, strict=True):
        fits = (
            (int(i), float(s))
            for i, s in zip(near, scores, strict=True)
            if rules.hard_min_similarity <= s <= rules.hard_max_similarity
            and normalise(corpus.texts[i]) not in positives
        )
        chosen = next(fits, None)
        if chosen is not None:
            positives.add(normalise(corpus.texts[chosen[0]]))
        found.append(chosen)
    return found


def matrix(embeddings: Artifact) -> tuple[list[str], np.ndarray]:
    """Texts `[n]` and their vectors `[n, d]` float32, in the order of the shards."""
    table = embeddings.read(["text", "vector"]).combine_chunks()
    column = table.column("vector").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return table.column("text").to_pylist(), flat.reshape(len(column), -1).astype(np.float32)


class Mining:
    """Mines negatives for the positives of a shard of pairs."""

    def __init__(self, recipe: Recipe, embeddings: Artifact) -> None:
        self._rules = recipe.negatives
        texts, vectors = matrix(embeddings)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._corpus = Corpus(texts, np.ascontiguousarray(vectors / np.maximum(norms, 1e-12)))
        self._row_of = {text: i for i, text in enumerate(texts)}

    def __call__(self, table: pa.Table) -> shards.Result:
        rows = table.to_pylist()
        known: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row["part"] == "train":  # its positives are no negatives, its negatives need no twin
                known[normalise(row["query"])].add(normalise(row["target"]))
        positives = [row for row in rows if _is_anchor(row)]
        parts = [
            self._mine(positives, known, "easy_negative", self._rules.easy_per_positive, easy),
            self._mine(positives, known, "hard_negative", self._rules.hard_per_positive, _hard_unseeded),
        ]
        made = [row for kept, _ in parts for row in kept]
        refused = [row for _, missed in parts for row in missed]
        rejected = pa.Table.from_pylist(refused, schema=tables.rejected(tables.PAIRS))
        return shards.Result(pa.Table.from_pylist(made, schema=tables.PAIRS), rejected)

    def _mine(
        self,
        positives: Sequence[dict[str, Any]],
        known: Mapping[str, set[str]],
        origin: str,
        per_positive: float,
        choose: Callable[..., list[tuple[int, float] | None]],
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(negatives made, positives for which there was none) of one kind."""
        anchors = [row for row in positives for _ in range(_copies(row, origin, per_positive, self._rules.seed))]
        refused = [
            _refusal(row, origin, "target has no vector") for row in anchors if row["target"] not in self._row_of
        ]
        anchors = [row for row in anchors if row["target"] in self._row_of]
        if not anchors:
            return [], refused
        vectors = self._corpus.vectors[[self._row_of[row["target"]] for row in anchors]]
        taken = [known[normalise(row["query"])] for row in anchors]
        seed = stable_number(origin, str(self._rules.seed), anchors[0]["pair_id"])
        made = []
        for row, found in zip(anchors, choose(self._corpus, vectors, taken, self._rules, seed), strict=True):
            if found is None:
                refused.append(_refusal(row, origin, "no candidate"))
            else:
                made.append(_negative(row, origin, self._corpus.texts[found[0]], found[1]))
        return made, refused


def _hard_unseeded(corpus: Corpus, anchors: Vectors, known: Any, rules: recipes.Negatives, _: int) -> Any:
    return hard(corpus, anchors, known, rules)


def _is_anchor(row: Mapping[str, Any]) -> bool:
    return bool(row["part"] == "train" and row["label"] == 1 and row["origin"] == "original")


def _copies(row: Mapping[str, Any], origin: str, per_positive: float, seed: int) -> int:
    """How many negatives a positive gets: the whole part of the share, and one more by chance for the rest."""
    whole = int(per_positive)
    return whole + (stable_share(origin, str(seed), row["pair_id"]) < per_positive - whole)


def _refusal(row: Mapping[str, Any], origin: str, reason: str) -> dict[str, Any]:
    return {**row, "origin": origin, "reason": reason, "detail": None}


def _negative(row: Mapping[str, Any], origin: str, target: str, similarity: float) -> dict[str, Any]:
    pair_id = f"{row['pair_id']}-{origin}-{stable_id(target)}"
    made = {"pair_id": pair_id, "target": target, "label": 0, "origin": origin, "similarity": similarity}
    return {**row, **made, "source_id": row["pair_id"]}


def config(recipe: Recipe) -> Mapping[str, Any]:
    """Literals of the identity; a recipe without negatives shares one empty artifact."""
    if not recipe.negatives.wanted:
        return {"negatives": None}
    # The cap per target and the draws are a shard's own, so that the rows of a shard are part of the content here.
    return recipe.negatives.model_dump() | {"shard_rows": recipe.runtime.shard_rows}


def run(context: Context) -> Outcome:
    """Write the negatives as pairs; positives that wanted one in vain are counted as refused."""
    recipe = context.recipe
    if not recipe.negatives.wanted:
        return Outcome(Counts())
    counts = shards.map_shards(
        shards.sources([context.inputs["dedupe"]]),
        partial(Mining, recipe, context.inputs["embed"]),
        context.folder,
        tables.PAIRS,
        workers=runtime.worker_count(recipe.runtime.map_workers),
        label="negatives",
    )
    return Outcome(counts)


STAGE = Stage("negatives", ("dedupe", "embed"), config, run)
