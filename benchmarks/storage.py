"""Storage: shards written and read locally and on S3 beside pyarrow's own, 100,000 of them listed, the shop at scale.

    python -m benchmarks.storage [--quick] [--parts PART …]

S3 is a server on loopback in a process of its own: it has no distance and little speed, so that what is compared is
clients. Every figure is the median of the repeats, with their range. A full run takes about ten minutes, and keeps its
result in RESULTS.md; `--quick` is smaller and takes about two.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import results, s3_pages
from benchmarks.memory import peaks
from benchmarks.ports import free_port
from benchmarks.results import Report
from ray_pipeline import artifact, runtime, storage
from ray_pipeline.artifact import Counts
from ray_pipeline.recipe import Runtime
from ray_pipeline.sandbox import shop, shop_shards
from ray_pipeline.sandbox.shop import ShopSpec

SHARD_ROWS = 50_000
LARGE_BYTES = 64 << 20
FOOTERS, LATENCY = 500, 0.02
BUCKET = "bench"
REPEATS = 3
FULL_ROWS, QUICK_ROWS = (100_000, 1_000_000), (20_000,)


def compare(report: Report, name: str, what: str, ours: Callable[[], Any], peer: tuple[str, Callable[[], Any]]) -> None:
    """Time two ways in turn, after one of each that does not count; the ratio is of times, below 1 is faster."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(REPEATS + 1):
        for way, found in zip((ours, peer[1]), times, strict=True):
            started = time.perf_counter()
            way()
            if number:
                found.append(time.perf_counter() - started)
    ratio = statistics.median(times[0]) / statistics.median(times[1])
    report.add(what, _seconds(times[0]), f"{peer[0]}: {_seconds(times[1])}", f"{ratio:.2f}", **{name: ratio})


def _seconds(times: Sequence[float]) -> str:
    low, middle, high = (1000 * value for value in (min(times), statistics.median(times), max(times)))
    return f"{middle:,.1f} ms ({low:,.1f} to {high:,.1f})"


@contextmanager
def s3(command: Sequence[str], port: int) -> Iterator[Any]:
    """An S3 server in a process of its own, which the environment names; gives pyarrow's file system for it."""
    from pyarrow import fs

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        _wait(port, process)
        yield fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1")
    finally:
        process.terminate()
        process.wait()


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the S3 server has ended before it was up: is moto[server] installed?")


def shard() -> pa.Table:
    """A shard of queries and category paths."""
    spec = ShopSpec(train_rows=SHARD_ROWS)
    return pa.Table.from_pylist([{**row, "label": int(str(row["label"]))} for row in shop.rows(spec, "QC", "train")])


def objects(report: Report) -> None:
    """Write and read, beside what pyarrow does by itself."""
    import boto3

    table, port = shard(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        _files(report, table, folder, "local", None)
    with s3([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as peer:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        _files(report, table, f"s3://{BUCKET}", "S3", peer)
        _large(report, peer)


def _files(report: Report, table: pa.Table, folder: str, where: str, peer: Any) -> None:
    ours, other = storage.join(folder, "ours"), storage.join(folder, "peer").removeprefix("s3://")
    size = storage.write_parquet(ours, table)
    name = f"{where.lower()}_"
    compare(
        report,
        f"{name}write",
        f"{where}: write a shard of {SHARD_ROWS:,} rows, {size / 2**20:.1f} MiB",
        lambda: storage.write_parquet(ours, table),
        ("pyarrow", lambda: pq.write_table(table, other, compression="zstd", filesystem=peer)),
    )
    compare(
        report,
        f"{name}read",
        f"{where}: read it",
        lambda: storage.read_parquet(ours),
        ("pyarrow", lambda: pq.read_table(other, filesystem=peer)),
    )
    compare(
        report,
        f"{name}read_column",
        f"{where}: read one column",
        lambda: storage.read_parquet(ours, ["id"]),
        ("pyarrow", lambda: pq.read_table(other, columns=["id"], filesystem=peer)),
    )


def _large(report: Report, peer: Any) -> None:
    data, url, other = os.urandom(LARGE_BYTES), f"s3://{BUCKET}/large", f"{BUCKET}/large"

    def write() -> None:
        with peer.open_output_stream(f"{BUCKET}/other") as file:
            file.write(data)

    def read() -> None:
        with peer.open_input_file(other) as file:
            file.read()

    what = f"S3: {LARGE_BYTES >> 20} MiB of bytes"
    compare(report, "s3_write_large", f"{what}, written", lambda: storage.write_bytes(url, data), ("pyarrow", write))
    compare(report, "s3_read_large", f"{what}, read", lambda: storage.read_bytes(url), ("pyarrow", read))


def listing(report: Report, names: int) -> None:
    """Find so many shards, locally and on S3, and read a manifest that names them."""
    folder = Path(tempfile.mkdtemp())
    try:
        for number in range(names):
            (folder / f"part-{number:05d}.parquet").touch()
        compare(
            report,
            "list_local",
            f"local: find {names:,} shards with their sizes",
            lambda: artifact.present_shards(str(folder)),
            ("pyarrow", lambda: _selected(None, str(folder))),
        )
    finally:
        shutil.rmtree(folder)
    _manifest(report, names)
    with tempfile.TemporaryDirectory() as one:
        artifact.write_shard(one, "shard", pa.table({"id": [1]}), None, 1)
        port = free_port()
        arguments = [str(names), f"{one}/shard", str(LATENCY), str(port)]
        with s3([sys.executable, "-m", "benchmarks.s3_pages", *arguments], port) as peer:
            _far(report, names, peer)


def _far(report: Report, names: int, peer: Any) -> None:
    path = f"{s3_pages.BUCKET}/{s3_pages.FOLDER}"
    url, few = f"s3://{path}", [f"part-{number:05d}.parquet" for number in range(FOOTERS)]
    found = len(artifact.present_shards(url))
    if not found == _selected(peer, path) == names:
        raise RuntimeError(f"{found} shards listed of {names}")
    compare(
        report,
        "list_s3",
        f"S3: find {names:,} shards, {names // s3_pages.PAGE} requests",
        lambda: artifact.present_shards(url),
        ("s3fs", lambda: _found_by_s3fs(url)),
    )
    compare(
        report,
        "footers",
        f"S3 at {1000 * LATENCY:.0f} ms: the counts of {FOOTERS} shards",
        lambda: artifact.counts_of(url, few),
        ("one after the other", lambda: [artifact.shard_counts(storage.join(url, name)) for name in few]),
    )


def _found_by_s3fs(url: str) -> int:
    import s3fs  # type: ignore[import-untyped]

    return len(s3fs.S3FileSystem(use_listings_cache=False).find(url))


def _selected(peer: Any, path: str) -> int:
    from pyarrow import fs

    return len((peer or fs.LocalFileSystem()).get_file_info(fs.FileSelector(path)))


def _manifest(report: Report, names: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = artifact.commit(folder, "stage", {}, {}, Counts(), 0, {})
        shards = {f"part-{number:05d}.parquet": 50_000 for number in range(names)}
        text = json.dumps(vars(made.manifest) | {"shards": shards})
        storage.write_bytes(storage.join(folder, artifact.MANIFEST), text.encode())
        compare(
            report,
            "manifest",
            f"local: load a manifest of {names:,} shards",
            lambda: artifact.load(folder),
            ("json.loads of it", lambda: json.loads(text)),
        )


def generator(report: Report, sizes: Sequence[int]) -> None:
    """The shop's rows a second and memory as it grows; its peer is the same generator in one process."""
    started = time.perf_counter()
    spec = ShopSpec(train_rows=sizes[0] // 5)
    for index in range(spec.train_rows):
        shop.line(shop.row(spec, "QC", "train", index))
    alone = spec.train_rows / (time.perf_counter() - started)
    started = time.perf_counter()
    runtime.start(Runtime())
    report.add("start of Ray, not in any figure below", f"{time.perf_counter() - started:.1f} s")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, peaks() as peak:
            started = time.perf_counter()
            shop_shards.write(ShopSpec(train_rows=size, dev_rows=1, test_rows=1), folder, ["QC"])
            speed = size / (time.perf_counter() - started)
        report.add(
            f"shop: {size:,} rows written on Ray, local; once",
            f"{speed:,.0f} rows/s; peak {peak.driver:,.0f} MiB driver, {peak.worker:,.0f} MiB worker",
            f"one process, nothing written, before: {alone:,.0f} rows/s",
            "",  # the two were not timed in turn
            **{f"shop_{size}": speed, f"shop_driver_{size}": peak.driver, f"shop_worker_{size}": peak.worker},
        )
    runtime.stop()


PARTS = ("objects", "listing", "shop")


def main() -> None:
    """Measure, print the table, and the figures as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller; nothing is kept in RESULTS.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these; nothing is kept")
    parser.add_argument("--rows", type=int, nargs="+", help="sizes of the shop (100,000 and 1,000,000)")
    options = parser.parse_args()
    report = Report(columns=4)
    if "shop" in options.parts:  # first, while the driver is small
        generator(report, options.rows or (QUICK_ROWS if options.quick else FULL_ROWS))
    if "objects" in options.parts:
        objects(report)
    if "listing" in options.parts:
        listing(report, 5_000 if options.quick else 100_000)
    text = results.table(("what", "ours", "peer", "time over the peer's"), report.rows)
    if not options.quick and tuple(options.parts) == PARTS:
        about = f"{results.where(('ray', 'pyarrow', 's3fs'))} S3 on loopback: moto, and for listings a server of fixed "
        about += "pages. Medians and ranges of 3."
        results.keep("storage", "Storage", f"{about}\n\n{results.command()}\n\n{text}")
    print(f"\n{text}\n\n{json.dumps(report.figures)}", flush=True)


if __name__ == "__main__":
    main()
