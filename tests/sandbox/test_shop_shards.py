"""The sample shop in many files: the same rows however they are divided, and only what is missing is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_pipeline import rawfiles, storage
from ray_pipeline.errors import StorageError
from ray_pipeline.recipe import Runtime
from ray_pipeline.sandbox import shop, shop_shards
from ray_pipeline.sandbox.shop import ShopSpec

SPEC = ShopSpec(train_rows=130, dev_rows=25, test_rows=25)
NAMES = [f"{split}_{task}" for split in ("train", "dev", "test") for task in ("QC", "QI")]
FILES = {*NAMES, *(f"labels/{name}" for name in NAMES if not name.startswith("train"))}


def joined(folder: str) -> bytes:
    return b"".join(storage.read_bytes(url) for url in storage.list_files(folder))


@pytest.mark.parametrize("shard_rows", [1, 7, 25, 130, 1000])
def test_the_rows_do_not_depend_on_how_they_are_divided(tmp_path: Path, shard_rows: int) -> None:
    whole = shop.write_shop(SPEC, tmp_path)
    found: dict[str, bytes] = dict.fromkeys(whole, b"")
    for shard in shop_shards.plan(SPEC, shard_rows=shard_rows):
        found[shard.folder] += shop_shards.content(SPEC, shard)
        assert shard.end - shard.start <= shard_rows
    assert found == {name: path.read_bytes() for name, path in whole.items()}


def test_files_sort_as_their_rows_do() -> None:
    numbers = [shard.path for shard in shop_shards.plan(SPEC, ["QI"], 1) if shard.folder == "train_QI"]
    assert numbers == sorted(numbers) and len(numbers) == 130


@pytest.mark.usefixtures("ray_up")
def test_a_shop_is_written_on_ray_and_read_as_folders(place: str, tmp_path: Path) -> None:
    whole = shop.write_shop(SPEC, tmp_path / "whole")
    folders = shop_shards.write(SPEC, place, shard_rows=40)
    assert {folder.removeprefix(f"{place}/") for folder in folders} == FILES
    assert all(joined(storage.join(place, name)) == path.read_bytes() for name, path in whole.items())
    files = rawfiles.find("train", [storage.join(place, "train_QC")], "auto")
    rows = [record for part in rawfiles.numbered_slices(files) for _, record in rawfiles.records(part)]
    assert rows == list(shop.rows(SPEC, "QC", "train"))

    lost, kept = (storage.join(place, f"train_QC/part-0000{number}.txt") for number in (1, 2))
    storage.remove_file(lost)
    storage.write_bytes(kept, b"not written again\n")
    shop_shards.write(SPEC, place, shard_rows=40)
    assert storage.exists(lost) and storage.read_bytes(kept) == b"not written again\n"


@pytest.mark.usefixtures("ray_up")
def test_one_task_alone(tmp_path: Path) -> None:
    folders = shop_shards.write(SPEC, str(tmp_path), ["QI"], 100, Runtime())
    assert {Path(folder).name for folder in folders} == {"train_QI", "dev_QI", "test_QI"}
    assert not (tmp_path / "train_QC").exists()


@pytest.mark.usefixtures("ray_up")
@pytest.mark.parametrize(("spec", "shard_rows"), [(ShopSpec(8, 130, 25, 25), 100), (SPEC, 99)])
def test_another_shop_in_the_folder_is_refused(tmp_path: Path, spec: ShopSpec, shard_rows: int) -> None:
    shop_shards.write(SPEC, str(tmp_path), ["QC"], 100)
    before = storage.list_files(str(tmp_path))
    with pytest.raises(StorageError, match=r"shop\.json: another shop is in this folder; name an empty one"):
        shop_shards.write(spec, str(tmp_path), ["QC"], shard_rows)
    assert storage.list_files(str(tmp_path)) == before


@pytest.mark.soak
def test_the_command_line_starts_ray_and_writes_shards(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ray_pipeline.sandbox.write_shop",
        "--rows",
        "30",
        "--tasks",
        "QC",
        "--shards",
        "3",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([*command, "--output", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    written = shop.write_shop(ShopSpec(7, 30, 3, 3), tmp_path / "whole")
    assert [path.name for path in sorted((tmp_path / "out" / "train_QC").iterdir())] == [
        f"part-0000{number}.txt" for number in range(3)
    ]
    assert joined(str(tmp_path / "out" / "train_QC")) == written["train_QC"].read_bytes()


@pytest.mark.parametrize("wrong", [["--rows", "0"], ["--shards", "0"], ["--folder", "x"], ["--tasks", "QX"]])
def test_wrong_usage_ends_before_anything_is_written(tmp_path: Path, wrong: list[str]) -> None:
    command = [sys.executable, "-m", "ray_pipeline.sandbox.write_shop", "--output", "out", *wrong]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 2
    assert not list(tmp_path.iterdir())
