"""Tests of ray_pipeline.artifact: the same ones on a local folder and on an S3 server."""

import json
import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from ray_pipeline import artifact, storage
from ray_pipeline.artifact import Artifact, Counts
from ray_pipeline.errors import CorruptArtifactError, PipelineError

CONFIG = {"rate": 0.1, "names": ["a", "é"], "deep": {"b": None, "a": True}}
INPUTS = {"pairs": "0123", "vectors": "4567"}


def rows(first: int, count: int) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table({"number": pa.array(numbers, pa.int64()), "text": pa.array([f"row {n}" for n in numbers])})


def refused(reasons: list[str]) -> pa.Table:
    return rows(900, len(reasons)).append_column("reason", pa.array(reasons))


def finished(folder: str) -> Artifact:
    """An artifact of two shards: 5 rows kept, 3 refused."""
    counts = [
        artifact.write_shard(
            folder, "part-00000.parquet", rows(0, 3), refused(["empty", "length"]), 5, {"requests": 2}
        ),
        artifact.write_shard(folder, "part-00001.parquet", rows(3, 2), refused(["empty"]), 3, {"input_tokens": 70}),
    ]
    return artifact.commit(folder, "audit", CONFIG, INPUTS, artifact.total(counts), 1.23456, {"usd": 0.5, "note": "x"})


def test_fingerprint_is_the_same_on_every_machine_and_in_every_version() -> None:
    # A golden value: if it changes, every artifact that users have is made again.
    assert artifact.fingerprint("audit", 1, CONFIG, INPUTS) == "e7fb5a866536e9783de7"


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    turned = {"deep": {"a": True, "b": None}, "names": ["a", "é"], "rate": 0.1}
    inputs = dict(reversed(INPUTS.items()))
    assert artifact.fingerprint("audit", 1, turned, inputs) == artifact.fingerprint("audit", 1, CONFIG, INPUTS)


@pytest.mark.parametrize(
    "changed",
    [
        ("dedupe", 1, CONFIG, INPUTS),
        ("audit", 2, CONFIG, INPUTS),
        ("audit", 1, CONFIG | {"rate": 0.2}, INPUTS),
        ("audit", 1, CONFIG | {"names": ["é", "a"]}, INPUTS),
        ("audit", 1, CONFIG | {"deep": {"b": False, "a": True}}, INPUTS),
        ("audit", 1, CONFIG | {"more": None}, INPUTS),
        ("audit", 1, CONFIG, INPUTS | {"vectors": "4568"}),
        ("audit", 1, CONFIG, {"pairs": "4567", "vectors": "0123"}),
        ("audit", 1, CONFIG, {"pairs": "0123"}),
    ],
)
def test_fingerprint_changes_with_what_changes_the_content(changed: tuple[Any, ...]) -> None:
    assert artifact.fingerprint(*changed) != artifact.fingerprint("audit", 1, CONFIG, INPUTS)


def test_counts_add_up() -> None:
    first = Counts(5, 3, {"empty": 1, "length": 1}, {"usd": 0.5})
    second = Counts(2, 1, {"empty": 1}, {"usd": 0.25, "requests": 1})
    assert first + second == Counts(7, 4, {"empty": 2, "length": 1}, {"usd": 0.75, "requests": 1})
    assert (first + second).rows_rejected == 3
    assert artifact.total([]) == Counts()
    assert first == Counts(5, 3, {"empty": 1, "length": 1}, {"usd": 0.5}), "adding changes neither"


def test_what_is_committed_is_loaded(place: str) -> None:
    folder = storage.join(place, "audit", "abc")
    made = finished(folder)
    found = artifact.load(folder)
    assert found == made
    manifest = made.manifest
    assert (manifest.stage, manifest.fingerprint) == ("audit", "abc")
    assert (manifest.config, manifest.inputs) == (CONFIG, INPUTS)
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_rejected) == (8, 5, 3)
    assert manifest.reasons == {"empty": 2, "length": 1}
    assert manifest.shards == {"part-00000.parquet": 3, "part-00001.parquet": 2}
    assert manifest.bytes == sum(storage.size(url) for url in made.shards) > 0
    assert manifest.seconds == 1.235
    assert (manifest.requests, manifest.usd) == (2, 0.5)
    assert manifest.tokens == {"input": 70, "output": 0, "thinking": 0}
    assert manifest.extra == {"note": "x"}
    assert manifest.versions["pyarrow"] == pa.__version__
    assert {"python", "ray-pipeline", "ray", "torch"} <= set(manifest.versions)


def test_a_manifest_has_the_fields_that_scripts_rely_on(place: str) -> None:
    finished(place)
    raw = json.loads(storage.read_bytes(storage.join(place, "manifest.json")))
    stable = "stage fingerprint inputs config rows_in rows_out rows_rejected seconds tokens usd versions"
    assert set(stable.split()) <= set(raw)


def test_rows_are_read_in_the_order_of_the_shards(place: str) -> None:
    made = finished(place)
    assert made.read().column("number").to_pylist() == [0, 1, 2, 3, 4]
    assert made.read(["text"]).column_names == ["text"]
    assert [table.num_rows for table in made.tables()] == [3, 2]


def test_refused_rows_are_kept_with_their_reason(place: str) -> None:
    table = finished(place).rejected()
    assert table is not None
    assert table.column("reason").to_pylist() == ["empty", "length", "empty"]
    assert "number" in table.column_names


def test_no_refused_rows(place: str) -> None:
    counts = artifact.write_shard(place, "part-00000.parquet", rows(0, 3), refused([]), 3)
    made = artifact.commit(place, "audit", {}, {}, counts, 0, {})
    assert made.rejected() is None
    assert made.manifest.rows_rejected == 0


def test_shards_that_somebody_else_has_written_are_not_committed(place: str) -> None:
    counts = artifact.write_shard(place, "part-00000.parquet", rows(0, 3), None, 3)
    artifact.write_shard(place, "part-00007.parquet", rows(3, 5), None, 2)
    with pytest.raises(CorruptArtifactError, match=r"its 2 shards hold \d rows, 3 were made"):
        artifact.commit(place, "audit", {}, {}, counts, 0, {})
    assert artifact.load(place) is None


@pytest.mark.parametrize(("rows_in", "out"), [(4, 3), (2, 3), (0, 1)])
def test_rows_that_do_not_add_up_are_refused(place: str, rows_in: int, out: int) -> None:
    artifact.write_shard(place, "part-00000.parquet", rows(0, out), None, rows_in)
    with pytest.raises(PipelineError, match=f"audit: {rows_in} rows in, but {out} out and 0 rejected") as caught:
        artifact.commit(place, "audit", {}, {}, Counts(rows_in, out), 0, {})
    assert place in str(caught.value)
    assert artifact.load(place) is None


def test_shards_of_what_is_divided_or_weighted_otherwise_by_now_go(place: str) -> None:
    def left(stage: str, *inputs: Artifact) -> bool:
        artifact.begin(folder, stage, {item.url: item for item in inputs})
        found = bool(artifact.present_shards(folder))
        artifact.write_shard(folder, "part-00000.parquet", rows(0, 3), None, 3)
        return found

    folder, pairs = f"{place}/score/f0", finished(f"{place}/pairs")
    first, again = (
        artifact.commit(f"{place}/{value}", "train", {}, {}, Counts(), 0, {"weights": value}) for value in "ab"
    )
    divided = replace(pairs, manifest=replace(pairs.manifest, shards={"part-00000.parquet": 5}))
    assert not left("score", pairs, first) and left("score", pairs, first)
    assert not left("score", pairs, again)
    assert not left("score", divided, again) and left("score", divided, again)
    assert not left("train", divided) and left("train", pairs), "checkpoints do not go by shards"
    artifact.commit(folder, "score", {}, {}, Counts(3, 3), 0, {"made_with": first.manifest.weights})
    storage.remove_file(f"{folder}/begun.json")
    assert not left("score", pairs, again), "of a run of before, which was not begun so"
    storage.write_bytes(f"{folder}.going", b"")
    assert not left("score", pairs, again), "what was being removed when the attempt before it ended"
    assert left("score", pairs, again)


def test_without_a_manifest_it_is_not_finished(place: str) -> None:
    assert artifact.load(place) is None
    artifact.write_shard(place, "part-00000.parquet", rows(0, 3), None, 3)
    assert artifact.load(place) is None
    finished(place)
    storage.write_bytes(storage.join(place, ".manifest.json.0.tmp"), b"{")
    assert artifact.load(place) is not None


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"x"', "\x00\xff"])
def test_a_damaged_manifest_is_named_with_the_remedy(place: str, content: str) -> None:
    finished(place)
    url = storage.join(place, "manifest.json")
    storage.write_bytes(url, content.encode("latin-1"))
    with pytest.raises(CorruptArtifactError, match="is damaged") as caught:
        artifact.load(place)
    assert str(caught.value).startswith(f"{url}: ")
    assert str(caught.value).endswith(f"delete {place} and run the same command again")


def test_a_manifest_of_another_version_is_read_as_far_as_it_can_be(place: str) -> None:
    made = finished(place)
    url = storage.join(place, "manifest.json")
    raw = json.loads(storage.read_bytes(url))
    storage.write_bytes(url, json.dumps(raw | {"added": [1]}).encode())
    assert artifact.load(place) == made
    del raw["tokens"]
    storage.write_bytes(url, json.dumps(raw).encode())
    with pytest.raises(CorruptArtifactError, match=f"has no tokens: it was made by another version; delete {place}"):
        artifact.load(place)


def test_the_version_tells_of_changed_code() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", artifact.versions()["ray-pipeline"])


def test_the_working_folder_of_an_artifact() -> None:
    assert artifact.workdir_of("s3://bucket/a/work/split/0123/") == "s3://bucket/a/work"


def test_a_shard_tells_its_counts_in_its_footer(place: str) -> None:
    kept = rows(0, 3).replace_schema_metadata({"mine": "kept"})
    made = artifact.write_shard(place, "part-00007.parquet", kept, refused(["empty", "é"]), 5, {"usd": 0.125})
    url = storage.join(place, "part-00007.parquet")
    assert artifact.shard_counts(url) == made == Counts(5, 3, {"empty": 1, "é": 1}, {"usd": 0.125})
    assert storage.read_parquet(url).schema.metadata[b"mine"] == b"kept"


def test_the_counts_of_many_shards_come_in_their_order(place: str) -> None:
    names = [f"part-{number:05d}.parquet" for number in range(40)]
    made = [artifact.write_shard(place, name, rows(0, number), None, number) for number, name in enumerate(names)]
    assert artifact.counts_of(place, names) == made
    assert artifact.counts_of(place, names[::-1]) == made[::-1]
    assert artifact.counts_of(place, []) == []
    storage.write_bytes(storage.join(place, names[7]), b"damaged")
    with pytest.raises(CorruptArtifactError, match=r"part-00007\.parquet: is damaged"):
        artifact.counts_of(place, names)


def test_a_manifest_of_a_hundred_thousand_shards(place: str) -> None:
    made = finished(place)
    shards = {f"part-{number:06d}.parquet": number for number in range(100_000)}
    text = json.dumps(vars(made.manifest) | {"shards": shards})
    storage.write_bytes(storage.join(place, artifact.MANIFEST), text.encode())
    found = artifact.load(place)
    assert found is not None
    assert found.manifest.shards == shards
    assert found.shards[-1] == storage.join(place, "part-099999.parquet")


def test_a_shard_without_counts_is_refused(place: str) -> None:
    url = storage.join(place, "part-00000.parquet")
    storage.write_parquet(url, rows(0, 3))
    with pytest.raises(CorruptArtifactError, match=r"part-00000\.parquet: carries no counts; delete it"):
        artifact.shard_counts(url)


def test_present_shards_are_whole_ones_only(place: str) -> None:
    assert artifact.present_shards(place) == []
    artifact.write_shard(place, "part-00001.parquet", rows(0, 1), refused(["empty"]), 2)
    artifact.write_shard(place, "part-00000.parquet", rows(0, 1), None, 1)
    for other in (".part-00002.parquet.0123.tmp", "part-00003.parquet.crc", "requests/part-00004.parquet", "x.parquet"):
        storage.write_bytes(storage.join(place, other), b"other")
    assert artifact.present_shards(place) == ["part-00000.parquet", "part-00001.parquet"]


def test_a_shard_that_is_written_again_leaves_no_refused_rows_of_before(place: str) -> None:
    artifact.write_shard(place, "part-00000.parquet", rows(0, 2), refused(["odd"]), 3)
    assert artifact.write_shard(place, "part-00000.parquet", rows(0, 2), None, 2) == Counts(2, 2)
    assert storage.list_files(storage.join(place, "rejected")) == []


def test_a_shard_shorter_than_its_manifest_says_is_refused(place: str) -> None:
    made = finished(place)
    artifact.write_shard(place, "part-00001.parquet", rows(3, 1), None, 1)
    tables = made.tables()
    assert next(tables).num_rows == 3
    with pytest.raises(CorruptArtifactError, match="holds 1 rows, its manifest says 2") as caught:
        next(tables)
    assert str(caught.value).startswith(storage.join(place, "part-00001.parquet"))
    assert str(caught.value).endswith(f"delete the folder {place} and run the same command again")


def test_a_missing_shard_is_named(place: str) -> None:
    made = finished(place)
    kept = storage.read_bytes(storage.join(place, "part-00001.parquet"))
    storage.remove_tree(place)
    storage.write_bytes(storage.join(place, "part-00001.parquet"), kept)
    with pytest.raises(CorruptArtifactError, match=r"part-00000\.parquet: is missing"):
        made.read()


def test_a_damaged_file_of_refused_rows_asks_for_the_whole_artifact_again(place: str) -> None:
    made = finished(place)
    storage.write_bytes(storage.join(place, "rejected/part-00000.parquet"), b"damaged")
    with pytest.raises(CorruptArtifactError, match=r"rejected/part-00000\.parquet: is damaged") as caught:
        made.rejected()
    assert str(caught.value).endswith(f"delete the folder {place} and run the same command again")


def test_an_artifact_is_read_where_it_was_moved_to(place: str) -> None:
    made = finished(storage.join(place, "old"))
    for url in storage.list_files(made.url):
        storage.write_bytes(url.replace("/old/", "/new/"), storage.read_bytes(url))
    storage.remove_tree(made.url)
    moved = artifact.load(storage.join(place, "new"))
    assert moved is not None and moved.read().num_rows == 5
