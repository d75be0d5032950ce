"""How far a training is, as its first worker tells and the driver shows it; a real one: see test_workers."""

from pathlib import Path

import pytest
from ray.experimental.internal_kv import _internal_kv_get

from ray_pipeline import progress
from ray_pipeline.train import pace


@pytest.mark.usefixtures("ray_up")
def test_the_driver_shows_what_the_first_worker_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> list[str]:
        shown.look()
        return [line.rsplit(",", 2)[0] for line in capsys.readouterr().err.splitlines()]

    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(pace, "TELL_SECONDS", 0.0)
    shown, tell = pace.StepProgress("train", str(tmp_path)), pace.Teller(str(tmp_path), total=40, batch_rows=8)
    assert said() == []
    tell(10)
    assert said() == ["  train: 10/40 steps"] and said() == [], "nothing new"
    tell(14)
    assert said() == ["  train: 14/40 steps, 32 rows"], "in its own time"
    tell(6)
    tell(7)
    assert said() == ["  train: 7/40 steps"], "after a loss it begins anew"
    monkeypatch.setattr(pace, "TELL_SECONDS", 3600.0)
    tell(8)
    assert said() == [], "told too often"
    tell(40)
    assert said() == ["  train: 40/40 steps, 264 rows"]
    with shown:
        assert _internal_kv_get(pace._key(str(tmp_path))) is not None
    assert _internal_kv_get(pace._key(str(tmp_path))) is None
