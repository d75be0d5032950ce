"""The page says everything that the report holds, needs nothing but itself, and trusts no text."""

import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from ray_pipeline.figures import Estimate, WeightedRate
from ray_pipeline.report.data import Report, TranslationQuality
from ray_pipeline.report.render import merged_stages, render, total, verdict
from ray_pipeline.wording import bounds, money

from .sample import account as sample_account
from .sample import comparison as sample_comparison
from .sample import people as sample_people
from .sample import sample_report, sample_task

NAN = math.nan
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects text, attributes and ids, and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def values(self, key: str) -> list[str]:
        """All values of one attribute."""
        return [value for _, name, value in self.attributes if name == key]


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample_report())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def one_task(report: Report) -> Report:
    return replace(report, tasks=report.tasks[:1], average_f1=None)


def test_tags_are_balanced_and_ids_unique(page: Page) -> None:
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.values("href")} <= set(ids)


def test_nothing_is_loaded_from_elsewhere(page: Page, html: str) -> None:
    assert page.values("src") == []
    assert all(link.startswith("#") for link in page.values("href"))
    assert "url(" not in html and "@import" not in html and "<link" not in html
    assert "http:" not in html and "https:" not in html


@pytest.mark.parametrize(
    "words",
    [
        "Multilingual search relevance",
        "2025-11-22 17:40 UTC",
        "The data are synthetic",
        "Average F1 0.886",
        "0.893 0.885–0.901",  # headline F1
        "answering “relevant” always 0.816",
        "AUROC 0.934",
        "threshold 0.423",
        "0.887 (0.879–0.895)",  # F1 at 0.5
        "Log loss 0.291 0.280–0.302",
        "AUROC, seen languages 0.941",
        "Japanese ja 0.874 0.854–0.894 0.861 0.841–0.881 0.888 0.868–0.908 0.800 800 66.6% seen",
        "Arabic ar 0.829 too few rows to say",
        "withheld languages 0.858 0.840–0.876",
        "no-translation",
        "seen languages 800 +0.002 −0.009 to +0.013",
        "better 96 51 < 0.001",
        "to +0.065 – too few rows to say one class only 0 0",
        "Fewer than 6 queries that are answered otherwise are too few to say. Each side is a single training; another "
        "seed could change a difference as much.",
        "The tune part chose threshold and best epoch; the labels",
        "without those that were killed before",
        "an answer that several stages use is counted in each, and so in the totals more than once",
        "397,512",
        "German Wanderschuhe hiking shoes shoes,boots relevant 0.910 0.220",
        "Rows that only “no-translation” answers correctly: the 1 whose",
        "靴 24cm shoes,socks not relevant 0.710 0.310",
        "garden 3 queries: too few",
        "musical instruments one class only one class only 1.014",
        "musical instruments one class only one class only 1.000 0.100 0.080–0.120 −0.050",
        "PR-AUC 0.961 0.956–0.966; by chance 0.667",
        "Mean score − share relevant −0.012 −0.021 to −0.003",
        "German de dev 1,500 300 320 0.701 74.2%",
        "Thai th test 2,500 0 0 0.612 65.5%",
        "shoes 0.934 0.928–0.940",
        "from a probability of 0.423",
        "languages with enough rows of tune have a threshold of their own",
        "the task’s threshold in place of 0.5 F1 0.887 0.891 +0.004 +0.002 to +0.006 better",
        "Log loss 0.312 0.291 −0.021 −0.025 to −0.017 better",
        "a temperature of 1.310",
        "English 1,210 0.410 0.414",
        "Korean 60 the task’s: too few rows, or one class 0.423",
        "dev 311 holdout 0",
        "decided 402",
        "near duplicate 640",
        "99.3% of the true",
        "hard negative 0.3 to 0.5 4,200",
        "German de translated 42,000 1,260 3.0%",
        "no significant difference",
        "240,000",
        "holdout 6,080 66.7%",
        "test 100,000 unknown",
        "German translated 29,100 12,900",
        "German de 10,000 9,505 95.0% 495 copied unchanged 214, wrong language 281",
        "en iphone 15 pl iphone 15 copied unchanged",
        "en running shoes 42 de Laufschuhe 43 numbers not kept lost 42; new 43",
        "German de 0.81 0.74 500 rows 94.0% 1,000 rows 3.8% 2.2% 40",
        "Arabic ar 0.84 0.74 503 rows – – – 37 length 12, wrong script 3",
        "anna, ben looked at 150 translations",
        "share of refused translations that people also call wrong 84.2% 67.1%–93.2%, 22 of 27 judged",
        "share of translations people call wrong that the checks refuse 37.7% 21.0%–58.0%, 22 of 30 judged",
        "41 translations are of a language and check of which nobody has judged any",
        "anna, ben meaning kept 92.0% 150 rows 0.71",
        "anna, ben label holds 99.0% 150 rows –",
        "people, judge meaning kept 95.1% 101 rows 0.66",
        "Italian it 98.0% 89.5%–99.6%, 50 rows 98.0%",
        "Arabic ar 75.0% 30.1%–95.4%, 4 rows –",
        "numbers not kept 100.0% 79.6%–100.0%, 15 rows",
        "Learning curves",
        "Query: 防水 シューズ",
        "null target 453",
        "1 h 26 min 410 3,200,417 $4.81",
        "99 710,000 unknown price",
        "Stages run for this report 11 h 11 min 1,018 7,820,834 $9.62 plus unknown price",
        "python jobs/pipeline.py jobs/recipes/paper.yaml",
        "base: google/gemma-3-12b-pt",
        "transformers 4.57.1",
    ],
)
def test_figures_are_in_the_page(page: Page, words: str) -> None:
    assert words in page.text


def test_warnings_come_first_and_notes_are_folded(page: Page) -> None:
    places = [page.text.index(f"QC · {level}") for level in ("warning", "good", "note")]
    assert places == sorted(places)
    assert re.search(r"\d+ notes? .*QC · note", page.text)


def test_queries_are_shown_and_not_run(page: Page, html: str) -> None:
    assert "<script>alert" not in html
    assert "Wasserdichte Handyhülle <script>alert(1)</script>" in page.text
    assert html.count("<script") == 1


def test_all_texts_are_escaped() -> None:
    evil = "<b onclick='x'>\"&"
    base = sample_task()
    task = replace(
        base,
        recipe_name=evil,
        recipe_yaml=evil,
        prompt_example=evil,
        languages=[replace(base.languages[0], name=evil)],
        composition=[(evil, evil, 1, 1)],
        audit=[(evil, 1, 0, {evil: 1})],
        audit_quality=[replace(base.audit_quality[0], language=evil, kept={evil: 1})],
        people=replace(sample_people(), annotators=[evil], meaning_kept={evil: sample_people().checks["length"]}),
        audit_examples=[dict.fromkeys(base.audit_examples[0], evil)],
        errors=[{**base.errors[0], "language": evil, "target": evil}],
        gains=[replace(base.gains[0], choice=evil)],
        breakdowns=[replace(base.breakdowns[0], name=evil, slices=[replace(base.languages[0], name=evil)])],
        comparison=replace(sample_comparison(), name=evil),
        account=replace(sample_account(), removed={evil: 1}, bands=[(evil, evil, 1)]),
        self_validation=[replace(base.self_validation[0], origin=evil)],
        findings=[replace(base.findings[0], title=evil, text=evil)],
    )
    report = replace(sample_report(), title=evil, notice=evil, command=evil, versions={evil: evil}, tasks=[task])
    html = render(report)
    assert "<b " not in html
    assert Page(html).text.count(evil) >= 12
    assert evil in unescape(html)


def test_scripts_have_their_direction_and_language(page: Page) -> None:
    spans = [(key, value) for tag, key, value in page.attributes if tag == "span" and key in ("lang", "dir")]
    assert ("lang", "ar") in spans and ("lang", "th") in spans
    assert spans.count(("dir", "auto")) == 2 * (7 + 2)


def test_one_task_has_no_average() -> None:
    text = Page(render(one_task(sample_report()))).text
    assert "Average F1" not in text and "QI" not in text.replace("tasks: [QC, QI]", "")


def test_a_bare_report_renders() -> None:
    unknown = Estimate(NAN, NAN, NAN)
    base = sample_task()
    empty = replace(base.headline, rows=0, positives=0, f1=unknown, precision=unknown, recall=unknown)
    task = replace(
        base, headline=empty, default_threshold_f1=unknown, scalars={}, seen_auroc=NAN, languages=[], groups=[],
        pr_curve=[], calibration=[], composition=[], parts=[], audit=[], audit_examples=[], curves=[], errors=[],
        findings=[], stages=[], comparison=None, audit_quality=[], people=None, breakdowns=[],
        decision=None, gains=[], account=None, self_validation=[],
    )  # fmt: skip
    report = replace(one_task(sample_report()), tasks=[task], notice=None, versions={})
    page = Page(render(report))
    assert page.open == []
    for words in ("names no run to compare with", "translates nothing", "No mistakes", "Nothing stands out"):
        assert words in page.text
    assert "nan" not in page.text and "Please note" not in page.text


def test_what_was_not_asked_of_translations_is_not_shown() -> None:
    base = sample_task()
    nothing = [TranslationQuality("de", None, 0, {}, None, 0, {})]
    bare = Page(render(replace(sample_report(), tasks=[replace(base, audit_quality=nothing, people=None)]))).text
    assert "Is the meaning kept?" not in bare and "What people say" not in bare and "German de 10,000" in bare
    some = [TranslationQuality("de", 0.5, 0, {}, None, 0, {})]
    text = Page(render(replace(sample_report(), tasks=[replace(base, audit_quality=some, people=None)]))).text
    assert "Into Similarity German de 0.50" in text and "Judged" not in text


def test_people_who_found_nothing_lost_are_shown() -> None:
    nothing = WeightedRate(NAN, NAN, NAN, 0, 0)
    found = replace(
        sample_people(), precision=nothing, recall=nothing, unjudged=0, checks={}, label_holds={}, agreements=[]
    )
    text = Page(render(replace(sample_report(), tasks=[replace(sample_task(), people=found)]))).text
    assert (
        "that people also call wrong – cannot be told from the rows judged" in text
        and "nobody has judged" not in text
        and "nan" not in text
        and "Failed check" not in text
    )


def test_two_recipes_of_one_task_keep_their_anchors_apart() -> None:
    report = sample_report()
    twins = [report.tasks[0], replace(report.tasks[0], recipe_name="other")]
    page = Page(render(replace(report, tasks=twins, average_f1=None)))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for words in ("Findings paper other What", "paper F1", "other · warning", "ingest paper, other reused"):
        assert words in page.text
    assert "Sections of other" in page.values("aria-label")


def test_folds_and_rows_of_the_other_task_are_told() -> None:
    task = sample_task()
    other = replace(sample_comparison(), joint_rows=56)
    task = replace(task, folds=[task.curves, task.curves], joint_rows=1234, comparison=other)
    text = Page(render(replace(sample_report(), tasks=[task]))).text
    assert "but in a training by folds the rows that each leaves out chose its epoch" in text
    assert "The mean of 2 folds" in text and "Quality – on the left-out rows" in text
    assert "397,512 + 1,234 of the other task" in text and "240,000 + 56 of the other task" in text
    assert "by language and origin, + 1,234 of the other task" in text


def test_shared_stages_are_counted_once() -> None:
    stages = merged_stages(sample_report().tasks)
    assert [(cost.stage, users) for cost, users in stages][:2] == [
        ("ingest", ["QC", "QI"]),
        ("translate", ["QC"]),
    ]
    assert len(stages) == 7


def test_a_stage_run_for_the_first_task_is_not_free() -> None:
    first, second = sample_report().tasks
    ran = replace(first, stages=[replace(first.stages[0], reused=False)])
    found = replace(second, stages=[replace(second.stages[0], reused=True)])
    [(cost, users)] = merged_stages([ran, found])
    assert not cost.reused and users == ["QC", "QI"]


def test_what_the_object_store_spilled_is_shown_with_the_knob() -> None:
    task = sample_task()
    *others, train = task.stages
    stages = [*others, replace(train, spilled=1_234_500_000)]
    text = Page(render(replace(sample_report(), tasks=[replace(task, stages=stages)]))).text
    assert "4 h 00 min spilled 1,234.5 MB" in text and text.count("MB") == 1
    assert "That takes time: give it more memory" in text and "runtime.shard_rows" in text
    assert "spilled" not in Page(render(sample_report())).text


def test_totals_say_when_a_price_is_unknown() -> None:
    stages = sample_task().stages
    assert total(stages).unpriced and total(stages).usd == pytest.approx(4.8123)
    assert not total(stages[:2]).unpriced
    assert "With the reused stages" not in render(
        replace(sample_report(), tasks=[replace(sample_task(), stages=stages[1:])])
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.02, "better"),
        (-0.02, -0.01, "worse"),
        (-0.01, 0.02, "no significant difference"),
        (NAN, NAN, "too few rows to say"),
    ],
)
def test_verdicts(low: float, high: float, words: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high))[1] == words


def test_less_is_better_for_some() -> None:
    assert (
        verdict(Estimate(-0.1, -0.2, -0.05), True)[1] == "better"
        and verdict(Estimate(0.1, 0.05, 0.2), True)[1] == "worse"
    )


def test_languages_go_by_their_english_names() -> None:
    parts = [replace(sample_task().languages[0], name=name) for name in ("cs", "und", "xx")]
    text = Page(render(replace(sample_report(), tasks=[replace(sample_task(), languages=parts)]))).text
    assert "Czech" in text and "undetermined" in text and "xx" in text


def test_numbers_in_words() -> None:
    assert [money(value) for value in (None, 0.0, 0.0123, 1234.5)] == [
        "unknown price",
        "$0.00",
        "$0.0123",
        "$1,234.50",
    ]
    assert bounds(Estimate(0.1, -0.1, 0.3), sign=True) == "−0.100 to +0.300"
