"""A folder that one of a node's workers makes for all, and the last removes."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from ray_pipeline.node_folder import shared


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def folders(place: Path) -> list[str]:
    return [found.name for found in place.rglob("*") if found.is_dir() and found.parent != place]


def test_it_is_made_once_and_gone_in_the_end(place: Path) -> None:
    made, all_in = list[Path](), Barrier(4, timeout=60)

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "weights").write_text("whole")

    def use(_: int) -> str:
        with shared("model", make) as folder:
            all_in.wait()
            return (folder / "weights").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == ["whole"] * 4
    assert len(made) == 1 and folders(place) == []
    with shared("model", make):
        assert len(made) == 2 and folders(place) == ["model"]


def test_what_was_half_made_is_made_again(place: Path) -> None:
    def half(folder: Path) -> None:
        folder.mkdir()
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"), shared("model", half):
        pass
    assert folders(place) == []
    with shared("model", Path.mkdir) as folder:
        assert folder.is_dir()
