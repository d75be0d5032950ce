"""A made-up run as realistic as a report needs it: ten languages, two tasks, a comparison."""

import math
from dataclasses import replace

from ray_pipeline.calibration import Calibration
from ray_pipeline.decision import Decision
from ray_pipeline.figures import (
    Agreement,
    Breakdown,
    Changed,
    Comparison,
    Difference,
    Estimate,
    Gain,
    People,
    Predicted,
    Rate,
    Slice,
    WeightedRate,
)
from ray_pipeline.report.data import (
    Contradicted,
    DataAccount,
    Finding,
    Report,
    StageCost,
    TaskReport,
    TranslationQuality,
)
from ray_pipeline.threshold import Own

SEEN = {"en": 0.91, "es": 0.895, "fr": 0.89, "ja": 0.874, "ko": 0.868, "pt": 0.893}
WITHHELD = {"de": 0.872, "it": 0.88, "pl": 0.851, "ar": 0.829}
NAN = math.nan


def estimate(value: float, width: float = 0.02) -> Estimate:
    """A figure with a symmetric interval."""
    return Estimate(value, value - width, value + width)


def part(name: str, f1: float, rows: int = 800, seen: bool = True, width: float = 0.02) -> Slice:
    """A slice in which two rows of three are relevant."""
    shown = (estimate(f1, width), estimate(f1 - 0.013, width), estimate(f1 + 0.014, width))
    return Slice(name, rows, rows * 2 // 3, *shown, seen=seen)


def languages() -> list[Slice]:
    """Ten languages, one of them too small for an interval."""
    seen = [part(name, f1) for name, f1 in SEEN.items()]
    withheld = [part(name, f1, 320, seen=False, width=0.035) for name, f1 in WITHHELD.items()]
    return [*seen, *withheld[:-1], replace(withheld[-1], rows=9, positives=6, f1=Estimate(0.829, NAN, NAN))]


def pr_curve() -> list[tuple[float, float, float]]:
    """Precision falls as recall rises."""
    return [(i / 50, 0.99 - 0.31 * (i / 50) ** 10, 1 - (i / 50) ** 5.6) for i in range(1, 51)]


def composition() -> list[tuple[str, str, int, int]]:
    """Original rows of the seen languages, translated rows of the others, mined negatives of both."""
    rows = [(name, "original", 27_600, 12_400) for name in SEEN]
    rows += [(name, "translated", 29_100, 12_900) for name in WITHHELD]
    rows += [(name, "easy_negative", 0, 6_000) for name in [*SEEN, *WITHHELD]]
    return rows + [(name, "hard_negative", 0, 2_500) for name in SEEN]


def comparison() -> Comparison:
    """Better on the withheld languages, no visible change on the seen ones, one slice too small."""
    values = {"all": 0.0182, "seen languages": 0.0021, "withheld languages": 0.0412, "de": 0.047, "pl": 0.052}
    items = [
        Difference(name, 800, *(estimate(value + shift, 0.011) for shift in (0, 0.004, -0.003)))
        for name, value in values.items()
    ]
    few = Estimate(0.04, NAN, NAN)
    worse = Difference("it", 320, estimate(-0.019, 0.01), estimate(-0.01, 0.01), estimate(-0.024, 0.01))
    tested = replace(items[0], gained=96, lost=51, p_value=0.00021)
    alike = Difference("ko", 200, *[estimate(0.045, 0.02)] * 3, one_class=True)
    differences = [tested, *items[1:], worse, alike, Difference("ar", 9, few, few, few)]
    gained = [Changed("de", "Wanderschuhe", "hiking shoes", "shoes,boots", 1, 0.91, 0.22)]
    lost = [Changed("ja", "靴 24cm", None, "shoes,socks", 0, 0.71, 0.31)]
    return Comparison("no-translation", differences, 240_000, 397_512, gained, lost)


def scalars(shift: float = 0.0) -> dict[str, Estimate]:
    """Figures of ranking and of probabilities; too many rows for an interval of the last one."""
    return {
        "auroc": estimate(0.9341 + shift, 0.006), "pr_auc": estimate(0.961 + shift, 0.005),
        "log_loss": estimate(0.291 - shift, 0.011), "ece": Estimate(0.031, NAN, NAN),
        "calibration_bias": estimate(-0.012, 0.009),
    }  # fmt: skip


def breakdowns() -> list[Breakdown]:
    """Lengths of queries, and categories of which one is tiny and one has a single class."""
    unknown = Estimate(NAN, NAN, NAN)
    one_class = replace(part("musical instruments", 1.0, 60), positives=60, queries=41)
    alone = {"auroc": unknown, "pr_auc": unknown, "log_loss": estimate(0.1), "ece": estimate(0.05)}
    alone |= {"calibration_bias": estimate(-0.05)}
    tiny = replace(part("garden", 0.8, 6), queries=3, f1=Estimate(0.8, NAN, NAN))
    categories = [replace(part("shoes", 0.9), scalars=scalars(), queries=412), replace(one_class, scalars=alone), tiny]
    return [Breakdown("query length", [part("6–10", 0.88), part("11–20", 0.9)]), Breakdown("top category", categories)]


def decision() -> Decision:
    """Thresholds by language on probabilities that a temperature has cooled."""
    own = [Own("en", 1_210, 0.41, 0.4143), Own("ko", 60, None, 0.423)]
    return Decision(0.423, Calibration("temperature", 1.31), "language", own)


def gains() -> list[Gain]:
    """A threshold that helps, thresholds by language that show nothing, a calibration that helps."""
    return [
        Gain("the task’s threshold in place of 0.5", "f1", 0.887, 0.891, estimate(0.0041, 0.002)),
        Gain("thresholds by language in place of the task’s", "f1", 0.891, 0.893, estimate(0.0019, 0.004)),
        Gain("temperature calibration in place of none", "log_loss", 0.312, 0.291, estimate(-0.021, 0.004)),
    ]


def account() -> DataAccount:
    """Everything was looked for."""
    return DataAccount(
        leaks={"dev": 311, "holdout": 0, "test": 207, "tune": 12},
        near_leaks={"dev": 87, "test": 91},
        conflicts={"decided": 402, "dropped": 55},
        removed={"duplicate": 1_903, "near duplicate": 640},
        bands=[("easy_negative", "below 0", 9_100), ("hard_negative", "0.3 to 0.5", 4_200)],
        recall=0.993,
        judged={"settled": 41, "unsettled": 7, "duplicates": 193},
    )


def errors() -> list[dict[str, str | float | int]]:
    """Mistakes in several scripts, and a query that tries to run."""
    rows = [
        ("ja", "防水 ランニングシューズ メンズ", "waterproof running shoes men", "shoes,sandals", 0, 0.981),
        (
            "ko",
            "무선 이어폰 케이스",
            "wireless earphone case",
            "consumer electronics,earphones accessories",
            1,
            0.034,
        ),
        ("ar", "فستان سهرة طويل 2024", "long evening dress 2024", "women's clothing,skirts", 0, 0.957),
        ("th", "เคสโทรศัพท์กันกระแทก", "shockproof phone case", "phones,phone holders", 0, 0.949),
        ("zh", "不锈钢保温杯", "stainless steel thermos", "kitchen,cups & mugs", 1, 0.061),
        ("de", "Wasserdichte Handyhülle <script>alert(1)</script>", "", "phones,cases & covers", 1, 0.072),
        ("und", "SM-G991B/DS", "", "automobiles, parts & accessories,interior parts", 0, 0.912),
    ]
    keys = ("language", "query", "query_en", "target", "label", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def audit_examples() -> list[dict[str, str]]:
    """Two accepted and three rejected translations."""
    rows = [
        ("en", "pl", "iphone 15", "iphone 15", "copied unchanged", ""),
        ("en", "de", "running shoes 42", "Laufschuhe 43", "numbers not kept", "lost 42; new 43"),
        ("fr", "ar", "robe de soirée", "مطرقة", "back-translation differs", "marteau"),
        ("en", "de", "waterproof phone case", "wasserdichte Handyhülle", "accepted", ""),
        ("en", "ar", "long evening dress", "فستان سهرة طويل", "accepted", ""),
    ]
    keys = ("source_language", "target_language", "source", "translation", "verdict", "detail")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def audit_quality() -> list[TranslationQuality]:
    """Everything was asked of every language, but nothing was judged in Arabic."""
    known = [
        TranslationQuality(
            name, 0.81 + i / 100, 40 - i, {}, 0.74, 500 + i, {"kept": 940, "label_at_risk": 38, "lost": 22}
        )
        for i, name in enumerate(WITHHELD)
    ]
    return [*known[:-1], replace(known[-1], verdicts={}, kept={"length": 12, "wrong script": 3})]


def people() -> People:
    """Two annotators who mostly agree; too few rows in Arabic to say much."""
    meaning = {"de": Rate(46, 50, 0.812, 0.968), "it": Rate(49, 50, 0.895, 0.996), "ar": Rate(3, 4, 0.301, 0.954)}
    label = {"de": Rate(48, 50, 0.865, 0.989), "it": Rate(49, 50, 0.895, 0.996)}
    return People(
        annotators=["anna", "ben"],
        rows=150,
        meaning_kept=meaning,
        label_holds=label,
        agreements=[
            Agreement("anna", "ben", "meaning_kept", 150, 0.92, 0.71),
            Agreement("anna", "ben", "label_holds", 150, 0.99, None),
            Agreement("people", "checks", "meaning_kept", 150, 0.943, 0.48),
            Agreement("people", "judge", "meaning_kept", 101, 0.951, 0.66),
        ],
        precision=WeightedRate(0.842, 0.671, 0.932, 22, 27),
        recall=WeightedRate(0.377, 0.21, 0.58, 22, 30),
        checks={"length": Rate(7, 12, 0.32, 0.807), "numbers not kept": Rate(15, 15, 0.796, 1.0)},
        unjudged=41,
    )


def stages(task: str) -> list[StageCost]:
    """Ingest is shared by the tasks; one stage's model has no known price."""
    rejected = {"null target": 453, "duplicate id": 12}
    return [
        StageCost("ingest", "1f00c0ffee11aa", 640_465, 640_000, 465, 41.2, True, 0, 0, 0.0, rejected),
        StageCost("translate", f"2a{task.lower()}77aa90b1", 40_000, 39_400, 600, 5_130.0, False, 410, 3_200_417, 4.8123,
                  {"blocked by safety": 71, "wrong language": 529}),
        StageCost("audit", f"3b{task.lower()}81bb90b1", 39_400, 38_020, 1_380, 612.0, False, 99, 710_000, None),
        StageCost("train", f"4c{task.lower()}92cc90b1", 398_000, 398_000, 0, 14_400.0, False, 0, 0, 0.0),
    ]  # fmt: skip


def findings() -> list[Finding]:
    """One of each level, in the wrong order."""
    return [
        Finding(
            "good",
            "Better than always “relevant”",
            "F1 is 0.893 where calling everything relevant gives 0.816.",
        ),
        Finding(
            "note",
            "Translation helps unseen languages",
            "Withheld languages gain 0.041 of F1 (0.030 to 0.052).",
        ),
        Finding("warning", "Over-prediction of positives", "81 % of rows are called relevant; 69 % are."),
    ]


def sample_task(task: str = "QC", f1: float = 0.893, always: float = 0.816) -> TaskReport:
    """One task, complete."""
    steps = range(1, 7)
    return TaskReport(
        task=task,
        recipe_name="paper",
        recipe_yaml="name: paper\ntasks: [QC, QI]\nmodel:\n  base: google/gemma-3-12b-pt\n  bits: 4\n",
        threshold=0.423,
        always_relevant_f1=always,
        over_always_relevant=estimate(f1 - always, 0.009),
        default_threshold_f1=estimate(f1 - 0.006, 0.008),
        headline=part("holdout", f1, 6_080, width=0.008),
        scalars=scalars(),
        seen_auroc=0.9412,
        languages=languages(),
        groups=[
            part("seen languages", 0.902, 4_800, width=0.009),
            part("withheld languages", 0.858, 1_280, seen=False, width=0.018),
        ],
        pr_curve=pr_curve(),
        calibration=[(0.05 + i / 10, min(1, 0.03 + (i / 10) ** 0.8), 220 + 160 * abs(i - 4)) for i in range(10)],
        composition=composition(),
        parts=[("train", 398_000, 271_000), ("tune", 6_011, 4_021), ("holdout", 6_080, 4_053), ("test", 100_000, -1)],
        audit=[(name, 10_000, 9_505, {"copied unchanged": 214, "wrong language": 281}) for name in WITHHELD],
        audit_examples=audit_examples(),
        curves=[
            {"step": 200.0 * i, "epoch": i / 2, "train_loss": 0.2 + 0.45 / i, "tune_loss": 0.27 + 0.3 / i + 0.008 * i,
             "tune_f1": 0.9 - 0.09 / i, "tune_auroc": 0.94 - 0.12 / i}
            for i in steps
        ],
        selection="f1",
        errors=errors(),
        findings=findings(),
        stages=stages(task),
        prompt_example="Is this category relevant? Answer yes or no.\nQuery: 防水 シューズ\nCategory: shoes",
        comparison=comparison(),
        audit_quality=audit_quality(),
        people=people(),
        breakdowns=breakdowns(),
        decision=decision(),
        gains=gains(),
        account=account(),
        predicted=[Predicted("dev", "de", 1_500, 300, 0.701, 0.742), Predicted("test", "th", 2_500, 0, 0.612, 0.655)],
        self_validation=[Contradicted("de", "translated", 42_000, 1_260), Contradicted("en", "original", 40_000, 400)],
    )  # fmt: skip


def sample_report() -> Report:
    """Both tasks."""
    return Report(
        title="Multilingual search relevance",
        created="2025-11-22T17:40:12+00:00",
        average_f1=0.8859,
        tasks=[sample_task("QC", 0.893, 0.816), sample_task("QI", 0.8788, 0.769)],
        versions={"python": "3.11.7", "ray": "2.40.0", "transformers": "4.57.1"},
        command="python jobs/pipeline.py jobs/recipes/paper.yaml --workdir runs/paper --output runs/paper/out",
        notice="The data are synthetic: the figures show that the pipeline works, not how good a model is.",
    )
