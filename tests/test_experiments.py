"""The experiments' matrices, their data, and what is written of their tables."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.experiments import __main__ as experiments
from benchmarks.experiments import pairs, report
from ray_pipeline import recipe
from ray_pipeline.ablation import matrix
from ray_pipeline.ablation.table import SCHEMA
from ray_pipeline.recipe import Split
from ray_pipeline.split import part_of
from ray_pipeline.text import normalise, stable_id


@pytest.mark.parametrize("name", report.NAMES)
def test_every_matrix_is_read_once_addresses_are_filled_in(tmp_path: Path, name: str) -> None:
    raw = yaml.safe_load((experiments.HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    urls = {rate: f"http://127.0.0.1:{8000 + rate}" for rate in experiments.rates(raw)}
    file = tmp_path / "matrix.yaml"
    file.write_text(yaml.safe_dump(experiments.placed(raw, tmp_path, urls), sort_keys=False), encoding="utf-8")
    [study], _ = matrix.read([str(file)], str(tmp_path), [0])
    for line in study.lines:
        assert experiments.shop(raw) or Path(line.runs[0].data.train[0]).name in experiments.FILES
        gemini = line.runs[0].gemini
        rate = int(gemini.model.removeprefix(experiments.TRANSLATOR))
        assert gemini.base_url == urls[rate]


def test_base_and_experiments_share_no_category(tmp_path: Path) -> None:
    first, second = pairs.categories(_taxonomy(tmp_path))
    assert not {one["category_id"] for one in first} & {one["category_id"] for one in second}


def test_pairs_name_a_category_in_each_language_and_label_other_paths_as_wrong(tmp_path: Path) -> None:
    chosen = pairs.categories(_taxonomy(tmp_path))[0]
    rows = pairs.draw(chosen, ("en", "de"), 400)
    own = {one["de"][-1].lower(): pairs.path(one) for one in chosen} | {
        one["en"][-1].lower(): pairs.path(one) for one in chosen
    }
    assert all((own[row["origin_query"]] == row["category_path"]) == bool(row["label"]) for row in rows)
    assert {row["language"] for row in rows} == {"en", "de"}
    assert 0.6 < sum(row["label"] for row in rows) / len(rows) < 0.72
    assert rows == pairs.draw(chosen, ("en", "de"), 400)


def test_only_labels_of_training_rows_are_turned(tmp_path: Path) -> None:
    taxonomy, split = _taxonomy(tmp_path), Split(tune=0.2, holdout=0.4)
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    pairs.write(taxonomy, right, ("en", "de"), 400, split)
    pairs.write(taxonomy, wrong, ("en", "de"), 400, split, 0.3)
    turned = [
        (json.loads(one), json.loads(other))
        for one, other in zip(right.read_text().splitlines(), wrong.read_text().splitlines(), strict=True)
        if one != other
    ]
    assert turned and all(one == other | {"label": 1 - other["label"]} for one, other in turned)
    assert {part_of(stable_id(normalise(one["origin_query"])), split) for one, _ in turned} == {"train"}


def test_what_has_run_and_was_looked_at_is_written_with_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "preface": "# Experiments",
        "setups": {"taxonomy": "## Setup", "shop": "## Shop"},
        "errors": {"setup": "taxonomy", "question": "Q?", "conclusion": "C.", "limits": "L.", "by_language": True},
    }
    (tmp_path / "conclusions.yaml").write_text(yaml.safe_dump(said | {"tricks": said["errors"]}))
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "errors").mkdir()
    (tmp_path / "experiments").mkdir()
    pq.write_table(_table(), tmp_path / "errors" / "ablation.parquet")
    report.write(tmp_path, tmp_path / "EXPERIMENTS.md")
    text = (tmp_path / "EXPERIMENTS.md").read_text()
    assert "## Setup\n\n### Q?" in text and "Shop" not in text
    assert "| worse | 80 | 0.700 | −0.100 (−0.150 to −0.050) | 0.010 |" in text and "| 0.750 | +0.020 " in text
    assert "| variant | all | ja |" in text and "| worse | 0.700 (0.600, 0.900) | 0.700 (–, 0.900) |" in text
    assert "tricks" not in text
    shutil.rmtree(tmp_path / "errors")
    report.write(tmp_path, tmp_path / "EXPERIMENTS.md")
    assert (tmp_path / "EXPERIMENTS.md").read_text() == text, "what was run elsewhere stays"
    picture = ElementTree.fromstring((tmp_path / "experiments" / "errors.svg").read_text())
    drawn = "".join(picture.itertext())
    assert "F1, withheld languages" in drawn and "AUROC, all rows" in drawn


def test_the_conclusions_are_of_experiments_that_are_there() -> None:
    said = yaml.safe_load((experiments.HERE / "conclusions.yaml").read_text(encoding="utf-8"))
    assert set(said) <= {"preface", "afterword", "setups", *report.NAMES}
    for name in set(said) - {"preface", "afterword", "setups"}:
        assert report.Conclusion.model_validate(said[name]).setup in said["setups"]


def test_the_base_recipe_keeps_what_it_withholds_from_training() -> None:
    base = recipe.read(experiments.HERE / "base.yaml", environment={})
    assert set(base.split.withhold) < set(experiments.LANGUAGES) == set(base.languages.candidates)


def _taxonomy(folder: Path) -> Path:
    rows = [
        {
            "category_id": f"{top}/{leaf}",
            "en": [f"Top {top}", f"leaf {top} {leaf}"],
            "de": [f"Top {top}", f"Blatt {top} {leaf}"],
        }
        for top in range(10)
        for leaf in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "categories.parquet")
    return folder / "categories.parquet"


def _table() -> pa.Table:
    rows = []
    for variant, f1, apart in (("good", 0.8, None), ("worse", 0.7, -0.1)):
        for name in ("all", "seen languages", "withheld languages", "ja"):
            rows.append(
                {"study": "errors", "task": "QC", "variant": variant, "slice": name, "baseline": apart is None,
                 "rows": 100, "seeds": [0, 1], "f1_by_seed": [f1, f1], "f1": f1, "auroc": 0.75, "training_rows": 80.0,
                 "precision": None if name == "ja" else 0.6, "recall": 0.9, "compared_seeds": [0, 1]}
                | ({} if apart is None else {"difference": apart, "difference_low": -0.15, "difference_high": -0.05,
                                             "p": 0.01, "p_holm": 0.01, "auroc_difference": 0.02, "auroc_p_holm": 0.5})
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)
