"""The stage of translation: its identity, what an attempt leaves for the next, and the two translators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, local_translator, tables, translate
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import StoppedError
from ray_pipeline.recipe import Recipe
from ray_pipeline.shards import Source
from ray_pipeline.stage import Context
from tests.made import finished, pair


def row(number: int, **changes: Any) -> dict[str, Any]:
    return pair(number, **{"part": "train", "target": f"home,leaf {number}", "label": 1, **changes})


@pytest.fixture
def pairs(tmp_path: Path) -> Artifact:
    rows = [row(i, language="en" if i % 2 else "fr", query=f"query {i // 4}") for i in range(60)]
    return finished(tmp_path, "split", rows, tables.PAIRS)


def test_identity(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**changes: Any) -> Any:
        return translate.config(make_recipe(**changes))

    assert config() == config(gemini__model="other", translate__rows_per_language=3) == {"translate": None}
    base = {"translate__languages": ["de"]}
    assert config(**base, gemini__concurrency=1, gemini__items_per_request=3, gemini__max_usd=1) == config(**base)
    assert config(**base, gemini__model="other") != config(**base)
    assert config(**base, translate__seed=1) != config(**base)
    local = base | {"translate__translator": "local", "translate__local__model": "owner/name"}
    before = config(**local)
    assert config(**local, translate__local__batch_rows=3) == before != config(**base)
    assert config(**local, translate__local__pickled_weights=True) == before, "the weights are the same"
    monkeypatch.setattr(local_translator, "EDITION", local_translator.EDITION + 1)
    assert config(**local) != before, "a changed instruction makes new translations"


def test_too_many_requests_without_a_translation_are_asked_about_again(
    tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    def check(share: float) -> None:
        recipe = make_recipe(translate__languages=["de"], translate__max_rejected_share=share)
        translate._check(Context(recipe, {}, str(tmp_path), str(tmp_path), {}), artifact.total(counts))

    table, refused = pa.table({"id": [1, 2, 3]}), pa.table({"id": [4, 5], "reason": ["timed out", "timed out"]})
    counts = [artifact.write_shard(str(tmp_path), "part-00000.parquet", table, refused, 5)]
    counts.append(artifact.write_shard(str(tmp_path), "part-00001.parquet", table, None, 3))
    check(0.25)
    assert len(artifact.present_shards(str(tmp_path))) == 2
    with pytest.raises(StoppedError, match=r"2 of 8 requests .* translate\.max_rejected_share 20%.*timed out: 2"):
        check(0.2)
    assert artifact.present_shards(str(tmp_path)) == ["part-00001.parquet"], "what is whole stays"


@pytest.mark.usefixtures("ray_up")
def test_an_attempt_goes_on_with_the_division_of_the_one_before(
    pairs: Artifact, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    """Else shards that the killed one has finished would hold rows of others'."""

    def sources(shard_rows: int) -> list[Source]:
        recipe = make_recipe(translate__languages=["de"], translate__pivot=True, runtime__shard_rows=shard_rows)
        folder = str(tmp_path / "translate")
        return translate._sources(Context(recipe, {"split": pairs}, folder, str(tmp_path), {}))

    first = sources(7)
    assert len(first) > 1
    assert sources(3) == first == sources(10_000)
    (tmp_path / "translate" / "requests.done").unlink()  # killed while it divided
    again = sources(10_000)
    assert len(again) == 1
    assert again[0].rows == sum(source.rows for source in first)
    assert artifact.present_shards(str(tmp_path / "translate" / "requests")) == [again[0].name]
