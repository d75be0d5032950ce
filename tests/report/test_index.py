"""The index of runs shows what each has left, and is written again when one more ends beside them."""

import json
from pathlib import Path

import pytest

from ray_pipeline.errors import InputError
from ray_pipeline.report import assemble, index
from tests.report.test_render import Page

from . import sample


def leave(folder: Path, name: str, f1: float) -> None:
    tasks = [sample.sample_task("QC", f1), sample.sample_task("QI", f1 / 2)]
    (folder / name).mkdir(parents=True)
    (folder / name / "metrics.json").write_text(assemble.metrics_json(tasks))


def test_every_run_is_listed_with_its_figures(tmp_path: Path) -> None:
    leave(tmp_path, "a & b", 0.8)
    leave(tmp_path, "second", 0.9)
    leave(tmp_path / "second", "deeper", 0.1)
    page = Page(Path(index.write(str(tmp_path))).read_text())
    assert page.open == [] and set(page.values("href")) == {"a%20%26%20b/report.html", "second/report.html"}
    for words in ("2 runs", "a & b", "0.800 0.792–0.808", "QI paper 0.450", "0.675", "0.816"):
        assert words in page.text
    assert "0.100" not in page.text


def test_what_a_report_notes_is_noted_beside_its_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_text(assemble.metrics_json([sample.sample_task("QC", 0.8)], "Made up."))
    assert "Made up." in Page(Path(index.write(str(tmp_path))).read_text()).text


def test_runs_of_before_lack_some_figures(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    task = {"f1": 0.5, "precision": None, "recall": 1, "auroc": None, "threshold": 0.1, "always_relevant_f1": 0.4}
    (tmp_path / "old" / "metrics.json").write_text(json.dumps({"tasks": {"QC": task}, "average_f1": 0.5}))
    text = Page(Path(index.write(str(tmp_path))).read_text()).text
    assert "old – 0.500 QC 0.500 0.400 – 1.000 – 0.100" in text


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", '{"loss": 0.3}', '{"tasks": ["x"]}', '{"tasks": {"QC": {"f1": 0.5}}, "average_f1": 0.5}',
        '{"tasks": {}}', '{"tasks": {}, "average_f1": "high"}',
    ],
)  # fmt: skip
def test_another_tool_s_figures_are_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.json").write_text(text)
    (tmp_path / "other" / "ablation.json").write_text('{"studies": [3]}')
    leave(tmp_path, "mine", 0.8)
    page = Page(Path(index.write(str(tmp_path))).read_text())
    assert set(page.values("href")) == {"mine/report.html"}


def test_links_hold_whatever_a_folder_is_called(tmp_path: Path) -> None:
    leave(tmp_path, "50% #1?", 0.8)
    page = Page(Path(index.write(str(tmp_path))).read_text())
    assert page.values("href") == ["50%25%20%231%3F/report.html"] * 2 and "50% #1?" in page.text


def test_it_is_refreshed_only_where_it_is(tmp_path: Path) -> None:
    leave(tmp_path, "one", 0.8)
    index.refresh(str(tmp_path / "one"))
    assert not (tmp_path / "index.html").exists()
    index.write(str(tmp_path))
    leave(tmp_path, "two", 0.9)
    index.refresh(str(tmp_path / "two") + "/")
    assert "two/report.html" in (tmp_path / "index.html").read_text()


def test_a_folder_of_runs_has_one_from_the_first_on(tmp_path: Path) -> None:
    leave(tmp_path, "one", 0.8)
    index.refresh(str(tmp_path / "one"), start=True)
    assert "one/report.html" in (tmp_path / "index.html").read_text()


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder in it holds a metrics\.json"):
        index.write(str(tmp_path))
