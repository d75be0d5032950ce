"""The one table: as a page, Markdown, Parquet, and for the index."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_pipeline import run_folder
from ray_pipeline.ablation import table
from ray_pipeline.ablation.runs import Ran
from ray_pipeline.figures import Estimate
from ray_pipeline.recipe import Recipe
from ray_pipeline.report import charts, index
from tests.report.test_render import Page

from . import ran
from .test_verdicts import HARD


@pytest.fixture
def runs(tmp_path: Path, make_recipe: Any) -> tuple[Recipe, list[Ran]]:
    recipe = make_recipe(evaluate__bootstrap_draws=100)
    wrong = {"base": HARD | set(range(2, 80, 6)), "<i>better</i>": HARD}
    found = [
        ran.run(tmp_path, recipe, line.strip("</i>"), seed, some) for seed in (0, 1) for line, some in wrong.items()
    ]
    named = [replace(one, line="<i>better</i>") if one.line == "better" else one for one in found]
    return recipe, [
        *named,
        Ran("ladder", "broken", 0, {}, problem="needs a <GPU>"),
        Ran("ladder", "broken", 1, {}, problem="again"),
    ]


def test_a_study_leaves_its_table_in_four_forms(runs: tuple[Recipe, list[Ran]], tmp_path: Path) -> None:
    recipe, done = runs
    study = ran.study(recipe, ["base", "<i>better</i>", "broken"], [0, 1])
    urls = table.write([study], done, str(tmp_path / "out"), "python jobs/ablation.py <x>")
    names = ["ablation.html", "ablation.md", "ablation.parquet", "ablation.json", "run.json"]
    assert [Path(url).name for url in urls] == names
    record = run_folder.recorded(str(tmp_path / "out"))
    assert record and set(record.made) == {f"ladder {run.line} {run.seed}" for run in done if run.artifacts}
    html = Path(urls[0]).read_text()
    page = Page(html)
    assert page.open == [] and "<i>" not in html and "http" not in html and page.values("src") == []
    assert "<i>better</i>" in page.text and "needs a <GPU>" in page.text and "python jobs/ablation.py <x>" in page.text
    assert "2 variants against base ," in page.text
    assert "broken failed" in page.text and "Davison and Hinkley" in page.text and "base baseline" in page.text
    assert "An answer that several stages use, such as those of a few rows and of more, was paid for once" in page.text
    assert "fewer than 6 queries otherwise" in page.text
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and {link[1:] for link in page.values("href")} <= set(ids)

    lines = Path(urls[1]).read_text().splitlines()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert {len(cells) for cells in rows.values()} == {14}
    assert rows["<i>better</i>"][5] == "better" and rows["base"][5] == "baseline" and rows["broken"][5] == "failed"
    assert "- broken failed, seed 0: needs a <GPU>" in lines

    stored = pq.read_table(urls[2])
    assert stored.schema.equals(table.SCHEMA)
    whole = {row["variant"]: row for row in stored.to_pylist() if row["slice"] == "all"}
    assert set(whole) == {"base", "<i>better</i>"} and whole["base"]["difference"] is None
    better = whole["<i>better</i>"]
    assert better["difference_low"] > 0 and better["p_holm"] < 0.05 and better["seeds"] == [0, 1]
    assert better["compared_seeds"] == [0, 1] and whole["base"]["compared_seeds"] == []
    shown = [f"{better[name]:.3f}" for name in ("f1", "auroc", "precision", "recall")]
    assert [rows["<i>better</i>"][place] for place in (0, 6, 10, 11)] == shown
    assert better["auroc_difference_low"] > 0 and better["auroc_p_holm"] < 0.05
    assert len(re.findall(".*".join(map(re.escape, ["<i>better</i> ", *shown])), page.text)) == 1, "in one row, too"

    study_headline = json.loads(Path(urls[3]).read_text())["studies"][0]
    assert study_headline["best"]["variant"] == "<i>better</i>" and study_headline["better"] == ["<i>better</i>"]
    assert (study_headline["variants"], study_headline["seeds"], study_headline["failed"]) == (3, 2, 1)
    listing = Page(Path(index.write(str(tmp_path))).read_text())
    assert "out/ablation.html" in listing.values("href") and "<i>better</i>" in listing.text


def test_a_study_of_which_nothing_ran_is_a_table_all_the_same(runs: tuple[Recipe, list[Ran]]) -> None:
    recipe, done = runs
    found = table.sections([ran.study(recipe, ["broken"], [0])], done)
    assert "failed" in table.markdown(found) and pq.read_table(io.BytesIO(table.parquet(found))).num_rows == 0
    page = Page(table.page(found, [], "c"))
    assert page.open == [] and "nan" not in page.text


def test_a_table_that_is_not_whole_says_what_it_rests_on(runs: tuple[Recipe, list[Ran]]) -> None:
    recipe, done = runs
    study = ran.study(recipe, ["base", "<i>better</i>"], [0, 1])
    first, whole = (table.sections([study], some) for some in ([one for one in done if one.seed == 0], done))
    assert "Seeds: 0 so far, of 0, 1." in table.markdown(first) and "Seeds: 0, 1." in table.markdown(whole)
    assert first[0].rows[1].verdict == ("unclear", "better with this seed") and first[0].differences[0].f1.low > 0
    assert json.loads(table.headline(first))["studies"][0]["better"] == []
    charted = [charts.differences(one.differences, styles=one.styles) for one in (first[0], whole[0])]
    assert [chart.count("whisker gain") > 0 for chart in charted] == [False, True], "the chart follows the words"
    by_auroc = [charts.differences(one.differences, "", one.auroc_styles, "auroc") for one in (first[0], whole[0])]
    assert [chart.count("whisker gain") > 0 for chart in by_auroc] == [False, True]
    (alone,) = table.sections([ran.study(recipe, ["broken", "base"], [0, 1])], done)
    assert [row.verdict[1] for row in alone.rows] == ["failed", "no run of the baseline to compare with"]


def test_of_rows_of_one_class_no_variant_is_better(runs: tuple[Recipe, list[Ran]]) -> None:
    recipe, done = runs
    (section,) = table.sections([ran.study(recipe, ["base", "<i>better</i>"], [0, 1])], done)
    nothing = Estimate(math.nan, math.nan, math.nan)
    rows = [replace(row, whole=replace(row.whole, auroc=nothing)) for row in section.rows if row.whole is not None]
    alike = replace(section, rows=rows)
    assert section.rows[1].verdict[1] == "better" and [row.verdict[1] for row in rows] == ["baseline", "one class only"]
    assert [one.one_class for one in section.differences + alike.differences] == [False, True]
    assert "one class only" in charts.differences(alike.differences, "", alike.styles)
    study = json.loads(table.headline([alike]))["studies"][0]
    assert study["better"] == [] and study["best"] is None


@pytest.mark.parametrize(
    ("difference", "p", "seeds", "words"),
    [
        (0.1, math.nan, 3, "too few rows to say"),
        (0.1, 0.05, 3, "no difference shown"),
        (0.1, 0.01, 2, "better"),
        (-0.1, 0.01, 2, "worse"),
        (-0.1, 0.01, 1, "worse with this seed"),
    ],
)
def test_a_difference_in_words(difference: float, p: float, seeds: int, words: str) -> None:
    assert table.outcome(difference, p, seeds)[1] == words
