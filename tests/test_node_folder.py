"""Folders that one of a node's processes makes for all: the last removes them, or they are kept."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from ray_pipeline import node_folder
from ray_pipeline.errors import StorageError
from ray_pipeline.node_folder import kept, shared


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def folders(place: Path) -> list[str]:
    return [found.name for found in place.rglob("*") if found.is_dir() and found.parent != place]


def written(made: list[Path], folder: Path) -> None:
    """Write a folder, and note it among those that were made."""
    made.append(folder)
    folder.mkdir()
    (folder / "weights").write_text("whole")


def test_it_is_made_once_and_gone_in_the_end(place: Path) -> None:
    made, all_in = list[Path](), Barrier(4, timeout=60)
    make = partial(written, made)

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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's cache, which is not there yet."""
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_made_once_and_stays(cache: Path) -> None:
    made, all_in = list[Path](), Barrier(4, timeout=60)
    make = partial(written, made)

    def use(_: int) -> Path:
        all_in.wait()
        return kept("model", make)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [cache / "model"] * 4
    assert len(made) == 1 and (cache / "model" / "weights").read_text() == "whole"
    assert kept("model", make) == cache / "model" and len(made) == 1


def test_what_was_half_made_is_not_kept(cache: Path) -> None:
    def half(folder: Path) -> None:
        folder.mkdir()
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        kept("model", half)
    assert [found for found in cache.iterdir() if found.is_dir()] == []
    (cache / ".model.part").mkdir()  # as a process leaves it that is killed
    (cache / ".model.part" / "old").touch()
    assert list(kept("model", Path.mkdir).iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(node_folder.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"file/cache: cannot be written: .*; set RAY_PIPELINE_CACHE"):
        kept("model", Path.mkdir)
