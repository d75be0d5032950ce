"""The schema of every table; each stage's output is cast to its own before it is written."""

import pyarrow as pa

PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, dev, test: the raw file it came from
        pa.field("part", pa.string()),  # train, tune, holdout for labelled rows of split train; else null
        pa.field("language", pa.string(), nullable=False),  # corrected, ISO 639-1, or und
        pa.field("language_raw", pa.string()),
        pa.field("query", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("query_en", pa.string()),
        pa.field("origin", pa.string(), nullable=False),  # original, translated, easy_, hard_, random_negative
        pa.field("source_id", pa.string(), nullable=False),  # the pair it came from; its own pair_id if original
        pa.field("group_id", pa.string(), nullable=False),  # hash of the root original's normalised query
        pa.field("position", pa.int64(), nullable=False),  # file number << 40 | row number of the root original
        pa.field("similarity", pa.float32()),  # of a mined negative to its anchor: target or query; else null
    ]
)

NEGATIVES = pa.schema(
    [
        *PAIRS,
        pa.field("band", pa.string(), nullable=False),  # of the similarity, e.g. 0.3 to 0.5
        pa.field("method", pa.string(), nullable=False),  # exact, ivf, hnsw, quantile, minimum, random
    ]
)

TRANSLATIONS = pa.schema(
    [
        pa.field("translation_id", pa.string(), nullable=False),
        pa.field("purpose", pa.string(), nullable=False),  # augment, pivot
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("source_language", pa.string(), nullable=False),
        pa.field("target_language", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("translation", pa.string(), nullable=False),
        pa.field("model_version", pa.string()),
        # of the source pair, so that a translation makes a pair without a look at its source
        pa.field("target", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("query_en", pa.string()),  # of an augmented row: its source in English, set by the audit
    ]
)

AUDITED = pa.schema(
    [
        *TRANSLATIONS,
        pa.field("failed", pa.string()),  # the check that it failed, where the recipe keeps such rows
        pa.field("mended", pa.string()),  # the check that the first translation failed; this one is the second model's
        pa.field("similarity", pa.float32()),  # cosine of text and translation; null where not computed
        pa.field("back_translation", pa.string()),  # of the sample that was translated back
        pa.field("back_similarity", pa.float32()),  # resemblance of text and back_translation
        pa.field("verdict", pa.string()),  # of the judge: kept, label_at_risk, lost; null where not judged
    ]
)

ANNOTATIONS = pa.schema(
    [
        pa.field("translation_id", pa.string(), nullable=False),
        pa.field("annotator", pa.string(), nullable=False),
        pa.field("meaning_kept", pa.bool_()),  # null: not answered
        pa.field("label_holds", pa.bool_()),
        pa.field("comment", pa.string()),
    ]
)

ENCODED = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # train, tune
        pa.field("language", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),  # tokens of the prompt
        pa.field("truncated", pa.bool_(), nullable=False),  # the prompt had to be cut
    ]
)

OUT_OF_FOLD = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("score", pa.float32()),  # by a model that has not seen the row's group; null where it was refused
    ]
)

VERDICTS = pa.schema([*OUT_OF_FOLD, pa.field("contradicted", pa.bool_(), nullable=False)])

SCORES = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("part", pa.string()),
        pa.field("score", pa.float32(), nullable=False),  # probability of relevance
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("adapter", pa.string(), nullable=False),  # fingerprint of the training that made it
    ]
)

PREDICTIONS = pa.schema(
    [
        *SCORES,
        pa.field("probability", pa.float32(), nullable=False),  # the score, calibrated by the recipe
        pa.field("threshold", pa.float32(), nullable=False),  # the row's: the task's, or its language's or category's
        pa.field("prediction", pa.int8(), nullable=False),  # 1 where probability >= threshold
    ]
)

SCORED_PAIRS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the input, or its file's number and the row's line
        pa.field("language", pa.string()),  # of the input
        pa.field("score", pa.float32(), nullable=False),  # what the model gives, from 0 to 1
        pa.field("probability", pa.float32(), nullable=False),  # the score, calibrated by the decision if one is named
        pa.field("threshold", pa.float32(), nullable=False),  # the row's
        pa.field("prediction", pa.int8(), nullable=False),  # 1 where probability >= threshold
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("adapter", pa.string(), nullable=False),  # fingerprint of its training; of several, joined by +
    ]
)

CURVES = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("epoch", pa.float64(), nullable=False),
        pa.field("train_loss", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("padded_tokens", pa.int64(), nullable=False),
        pa.field("tune_loss", pa.float64(), nullable=False),
        pa.field("tune_f1", pa.float64(), nullable=False),
        pa.field("tune_auroc", pa.float64(), nullable=False),
        pa.field("tune_average_precision", pa.float64(), nullable=False),
    ]
)


def embeddings(dimension: int) -> pa.Schema:
    """Vectors of texts, each once in a role: `vector` is `fixed_size_list<float16>[dimension]`."""
    return pa.schema(
        [
            pa.field("text_id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("role", pa.string(), nullable=False),  # target, query: the column of the pairs that it stands in
            pa.field("vector", pa.list_(pa.float16(), dimension), nullable=False),
        ]
    )


def rejected(schema: pa.Schema) -> pa.Schema:
    """The schema's columns, all nullable, and why the row was refused."""
    fields = [field.with_nullable(True) for field in schema]
    return pa.schema([*fields, pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string())])


REJECTED_INPUT = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),  # from 1
        pa.field("field", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("raw", pa.string()),  # the start of the line, invalid bytes escaped
    ]
)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, order and types; raises KeyError for a missing column."""
    return pa.table([table.column(field.name).cast(field.type) for field in schema], schema=schema)
