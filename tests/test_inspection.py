"""What an artifact holds, told truly: counts, histograms, examples; as text and as a page; and what is no artifact."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline import reading, storage, tables
from ray_pipeline.artifact import MANIFEST, Artifact
from ray_pipeline.inspection import command
from ray_pipeline.inspection.histogram import MOST_BINS, Histogram
from ray_pipeline.inspection.page import page
from ray_pipeline.inspection.profile import LONGEST, profile, shortened
from ray_pipeline.inspection.text import show, top
from tests import made

ROOT = Path(__file__).parent.parent
EVIL = "<script>alert(1)</script> \x1b[31mred\x07"


def rows() -> list[dict[str, Any]]:
    """40 originals in three languages, 10 easy and 5 hard negatives."""
    languages = ["en"] * 20 + ["ja"] * 15 + ["und"] * 5
    found = [made.pair(i, language=language, part="train") for i, language in enumerate(languages)]
    for i in range(15):
        origin = "easy_negative" if i < 10 else "hard_negative"
        similarity = -0.305 + 0.01 * i if i < 10 else 0.5
        changes = {"origin": origin, "similarity": similarity, "label": 0, "part": "train"}
        found.append(made.pair(100 + i, **changes))
    found[3]["query"] = EVIL
    found[4]["target"] = "long " * 200
    return found


@pytest.fixture
def mined(tmp_path: Path) -> Artifact:
    refused = [made.pair(200 + i, reason="no candidate" if i else "target has no vector") for i in range(4)]
    return made.finished(tmp_path, "negatives", rows(), tables.PAIRS, refused, shards=3, recall=0.99)


def vectors(folder: Path, values: np.ndarray) -> Artifact:
    schema = tables.embeddings(values.shape[1])
    found = [{"text_id": str(i), "text": f"t{i}", "role": "target", "vector": v} for i, v in enumerate(values)]
    kept = [{name: row[name] for name in schema.names} for row in found]
    return made.finished(folder, "embed", kept, schema, shards=2)


def test_counts_are_those_of_all_shards(mined: Artifact) -> None:
    found = profile(mined)
    assert found.rows == 55 and found.rejected == 4
    assert found.counts["language"] == {"en": 35, "ja": 15, "und": 5}
    assert found.counts["origin"] == {"original": 40, "easy_negative": 10, "hard_negative": 5}
    assert found.counts["label"] == {"0": 35, "1": 20}
    assert found.counts["part"] == {"train": 55} and found.counts["split"] == {"train": 55}
    assert found.reasons == {"no candidate": 3, "target has no vector": 1}
    assert found.composition[0] == ("en", "original", 10, 10)
    assert sum(positives + negatives for _, _, positives, negatives in found.composition) == 55


def test_what_has_no_value_is_counted_as_such(tmp_path: Path) -> None:
    item = made.finished(tmp_path, "split", [made.pair(i, part=None, label=None) for i in range(3)], tables.PAIRS)
    found = profile(item)
    assert found.counts["part"] == {"(none)": 3} and found.composition == []


def test_similarities_are_shown_by_origin(mined: Artifact) -> None:
    (title,) = profile(mined).histograms
    groups = profile(mined).histograms[title]
    assert title == "similarity by origin" and set(groups) == {"easy_negative", "hard_negative"}
    easy = groups["easy_negative"]
    assert easy.rows == 10 and easy.low == pytest.approx(-0.305) and easy.high == pytest.approx(-0.215)
    assert [rows for _, _, rows in groups["hard_negative"].bars()] == [5]


def test_scores_are_shown_by_part(tmp_path: Path) -> None:
    scored = [made.scored(made.pair(i), i / 100) for i in range(100)]
    groups = profile(made.finished(tmp_path, "score", scored, tables.SCORES)).histograms["score by part"]
    assert sum(rows for _, _, rows in groups["holdout"].bars()) == 100


def test_vectors_are_shown_by_dimension_and_norm(tmp_path: Path) -> None:
    values = np.array([[3, 4], [0.6, 0.8], [np.nan, 1]], np.float16)
    found = profile(vectors(tmp_path, values)).vectors["vector"]
    assert found.dimension == 2 and found.norms.rows == 2 and found.norms.not_finite == 1
    assert found.norms.high == pytest.approx(5, abs=1e-3) and found.norms.low == pytest.approx(1, abs=1e-3)
    assert "1 NOT FINITE" in show(profile(vectors(tmp_path / "b", values)))


def test_examples_are_seeded_and_stand_where_they_say(mined: Artifact) -> None:
    first, again, other = profile(mined, 6, 1), profile(mined, 6, 1), profile(mined, 6, 2)
    assert first.examples == again.examples != other.examples and len(first.examples) == 6
    for example in first.examples:
        table = reading.finished(mined.url).read().to_pylist()
        urls = {url.rsplit("/", 1)[-1]: url for url in mined.shards}
        stored = next(reading.slices(urls[example.file])).table.to_pylist()[example.row]
        assert stored["pair_id"] == example.values["pair_id"] and stored in table
    assert len(profile(mined, 1000).examples) == 55 and profile(mined, 0).examples == []
    assert {example.values["reason"] for example in profile(mined, 1000).rejected_examples} == set(
        profile(mined).reasons
    )


def test_long_texts_are_cut_and_control_characters_steer_no_terminal(mined: Artifact) -> None:
    assert shortened("x" * 1000) == "x" * LONGEST + "… (1,000 characters)"
    assert shortened([101, 50264, 7]) == "[101, 50264, 7] (3 numbers)"
    assert shortened([0.5, 0.25, 1.0, 2.0, 3.0]) == "[0.5, 0.25, 1, 2, …] (5 numbers)"
    text = show(profile(mined, 1000))
    assert "\x1b" not in text and "\x07" not in text and "\\u001b[31mred" in text
    assert "long " * 100 not in text and "(1,000 characters)" in text


def test_the_text_says_what_the_manifest_says(mined: Artifact) -> None:
    text = show(profile(mined))
    for words in (mined.manifest.fingerprint, "59 in, 55 out, 4 rejected", "3 with 55 rows", "0.5 s", "recall  "):
        assert words in text, words
    assert "no candidate" in text and "similarity by origin: hard_negative" in text


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(mined: Artifact) -> None:
    html = page(profile(mined, 1000))
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "http" not in html.replace("http://www.w3.org", "") and "src=" not in html and "<link" not in html
    assert html.count("<svg") == 3  # rows by language, and two histograms
    for words in ("Japanese", "no candidate", "similarity by origin", "int8"):
        assert words in html, words


def test_an_artifact_without_rows_is_shown(tmp_path: Path) -> None:
    empty = profile(made.finished(tmp_path, "mix", [], tables.PAIRS, shards=0))
    assert "0 in, 0 out" in show(empty) and "It holds no rows." in page(empty)
    hollow = profile(made.finished(tmp_path / "b", "mix", [], tables.PAIRS, shards=1))
    assert hollow.schema[0][0] == "pair_id" and "<svg" not in page(hollow)


def test_only_a_slice_is_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of a million rows costs no more than one of a hundred thousand."""
    peaks = []
    for size in (100_000, 1_000_000):
        url = str(tmp_path / f"{size}.parquet")
        table = pa.table({"label": pa.array(np.arange(size) % 2, pa.int8()), "text": pa.array(["a"] * size)})
        storage.write_parquet(url, table)
        del table
        before = pa.total_allocated_bytes()
        held = [pa.total_allocated_bytes() - before for _ in reading.slices(url, ["label"])]
        peaks.append(max(held))
    assert peaks[1] < 3 * peaks[0] + 1_000_000


# Histograms


def test_a_histogram_counts_every_value_whatever_the_range() -> None:
    generator = np.random.default_rng(0)
    for scale in (1e-3, 1, 1e4):
        values = generator.normal(size=5000) * scale
        found = Histogram()
        for part in np.array_split(values, 7):
            found.add(part)
        bars = found.bars()
        assert sum(rows for _, _, rows in bars) == found.rows == 5000
        assert found.low == values.min() and found.mean == pytest.approx(values.mean())
        assert len(found._bins) <= MOST_BINS + 1 and len(bars) <= 50
        edges = np.array([low for low, _, _ in bars] + [bars[-1][1]])
        expected, _ = np.histogram(values, edges)
        assert np.abs(expected - [rows for _, _, rows in bars]).sum() <= 4  # a value on an edge may go either way


def test_histograms_of_several_ranges_are_merged_as_if_one_had_counted_all() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=1000) * scale for scale in (1e-3, 1e3, 1)]
    merged, whole = Histogram(), Histogram()
    for part in parts:
        one = Histogram()
        one.add(np.append(part, np.nan))
        merged.merge(one)
        whole.add(np.append(part, np.nan))
    assert merged.bars() == whole.bars() and merged.rows == 3000 and merged.not_finite == 3
    assert (merged.low, merged.high, merged.mean) == (whole.low, whole.high, pytest.approx(whole.mean))
    merged.merge(Histogram())
    assert merged.bars() == whole.bars()


def test_a_histogram_without_values_has_no_bars() -> None:
    found = Histogram()
    found.add(np.array([np.nan, np.inf]))
    assert found.bars() == [] and found.not_finite == 2 and np.isnan(found.mean)


def test_rare_values_are_summed_up() -> None:
    listed = top(Counter({f"v{i:02}": 100 - i for i in range(30)}), most=3)
    assert listed == [("v00", 100), ("v01", 99), ("v02", 98), ("27 others", sum(100 - i for i in range(3, 30)))]


# The job


def test_the_job_shows_a_folder_and_writes_the_page(mined: Artifact, tmp_path: Path, capsys: Any) -> None:
    assert command.run("d", [f"{mined.url}/", "--html", str(tmp_path / "a" / "page.html")]) == 0
    assert "similarity by origin" in capsys.readouterr().out
    assert "<!DOCTYPE html>" in (tmp_path / "a" / "page.html").read_text()


def test_a_stage_stands_for_its_newest_artifact(tmp_path: Path, capsys: Any) -> None:
    stage = tmp_path / "work" / "mix"
    stage.mkdir(parents=True)
    for number in range(2):
        item = made.finished(tmp_path / f"{number}", "mix", [made.pair(number)] * (number + 1), tables.PAIRS)
        Path(item.url).rename(stage / f"f{number}")
    for newest, rows_ in ((0, "1 in, 1 out"), (1, "2 in, 2 out")):
        os.utime(stage / f"f{newest}" / MANIFEST, (2e9 + newest, 2e9 + newest))
        assert command.run("d", ["mix", "--workdir", str(tmp_path / "work")]) == 0
        assert rows_ in capsys.readouterr().out


def test_an_artifact_on_s3_is_shown(s3_bucket: str, mined: Artifact, capsys: Any) -> None:
    folder = f"s3://{s3_bucket}/work/negatives/f0"
    storage.upload_folder(Path(mined.url), folder)
    for name in (folder, "negatives"):
        assert command.run("d", [name, "--workdir", f"s3://{s3_bucket}/work"]) == 0
        assert "59 in, 55 out, 4 rejected" in capsys.readouterr().out


def test_what_is_no_artifact_is_named(mined: Artifact, tmp_path: Path, capsys: Any) -> None:
    def said(*arguments: str) -> str:
        assert command.run("d", list(arguments)) == 1
        return str(capsys.readouterr().err)

    assert "no such folder" in said(str(tmp_path / "nothing"))
    assert "did you mean negatives?" in said("negative")
    assert "holds no finished artifact" in said("mix", "--workdir", str(tmp_path))
    shard = Path(mined.shards[1])
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert str(shard) in said(mined.url)
    shard.write_bytes(Path(mined.shards[2]).read_bytes()[:0])
    assert str(shard) in said(mined.url)
    shard.unlink()
    assert "is missing" in said(mined.url)
    shard.write_bytes(whole)
    storage.write_parquet(str(shard), pa.Table.from_pylist(rows()[:2], schema=tables.PAIRS))
    assert "holds 2 rows, its manifest says 18" in said(mined.url)
    (Path(mined.url) / MANIFEST).write_text("{")
    assert MANIFEST in said(mined.url) and "is damaged" in said(mined.url)
    (Path(mined.url) / MANIFEST).unlink()
    assert f"holds no {MANIFEST}" in said(mined.url)


def test_the_job_runs_as_a_file_without_hiding_a_module_of_python(mined: Artifact) -> None:
    command_line = [sys.executable, "jobs/inspect_artifact.py", mined.url, "--workers", "2"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "59 in, 55 out, 4 rejected" in done.stdout
    assert not {file.stem for file in (ROOT / "jobs").glob("*.py")} & set(sys.stdlib_module_names)
