"""A checkpoint that lacks a file, or whose file has changed, is told from a whole one."""

from pathlib import Path

import pytest

from ray_pipeline.train import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of two workers."""
    for rank in range(2):
        own = tmp_path / f"worker-{rank}"
        (own / "engine").mkdir(parents=True)
        (own / "engine" / f"rank-{rank}.pt").write_bytes(bytes([rank]) * 1000)
        checkpoint.seal(own, rank, 2)
    merged = tmp_path / "merged"
    (merged / "engine").mkdir(parents=True)
    for path in tmp_path.glob("worker-*/**/*"):
        if path.is_file():
            path.rename(merged / path.relative_to(path.parents[1 if path.parent.name == "engine" else 0]))
    return merged


def test_a_whole_one(folder: Path) -> None:
    assert checkpoint.fault(folder) is None


def test_only_deepspeed_s_own_form_is_for_as_many_workers(folder: Path) -> None:
    assert checkpoint.workers(folder) == 2
    assert checkpoint.foreign(folder, 1) is None
    for rank in range(2):
        share = folder / "engine" / "state" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        share.parent.mkdir(exist_ok=True)
        share.touch()
    assert checkpoint.foreign(folder, 2) is None
    for now in (1, 3):
        assert f"among 2 worker(s), and now there are {now}" in (checkpoint.foreign(folder, now) or "")


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_missing_is_named(folder: Path, rank: int) -> None:
    (folder / "engine" / f"rank-{rank}.pt").unlink()
    assert checkpoint.fault(folder) == f"engine/rank-{rank}.pt is missing"


@pytest.mark.parametrize("change", [lambda b: b[:500], lambda b: b[:-1] + b"x"], ids=["half", "one byte"])
def test_what_has_changed_is_named(folder: Path, change: object) -> None:
    file = folder / "engine" / "rank-1.pt"
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    assert checkpoint.fault(folder) == "engine/rank-1.pt has changed since it was written"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"workers": 2}'])
def test_a_seal_that_cannot_be_read(folder: Path, text: str | None) -> None:
    seal = folder / "seal-1.json"
    seal.unlink() if text is None else seal.write_text(text)
    assert (checkpoint.fault(folder) or "").startswith("seal-1.json cannot be read")
