"""An S3 server of a folder of many shards, all alike: it lists them at once, and gives each after some latency.

Run as `python -m benchmarks.s3_pages NAMES SHARD LATENCY_SECONDS PORT`.
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer, make_server

BUCKET, FOLDER = "pages", "folder"
PAGE = 1000


def answer(names: int, query: dict[str, list[str]]) -> str:
    """One page of ListObjectsV2."""
    start = int(query.get("continuation-token", ["0"])[0])
    stop = min(start + PAGE, names)
    keys = "".join(
        f"<Contents><Key>{FOLDER}/part-{number:05d}.parquet</Key><Size>1000</Size><ETag>&quot;0&quot;</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(start, stop)
    )
    more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < names else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{FOLDER}/</Prefix><KeyCount>{stop - start}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{str(stop < names).lower()}</IsTruncated>{more}{keys}</ListBucketResult>"
    )


class _KeepsAlive(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a benchmark's output is its table."""


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


def serve(names: int, shard: bytes, latency: float, port: int) -> WSGIServer:
    """A server of so many names, not yet started; the shard must be shorter than any range that is asked of its end."""
    pages: dict[str, bytes] = {}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = environ["QUERY_STRING"]
        if "list-type" not in query:
            time.sleep(latency)
            span = f"bytes 0-{len(shard) - 1}/{len(shard)}"
            start_response("206 Partial Content", [("Content-Length", str(len(shard))), ("Content-Range", span)])
            return [shard]
        page = pages.get(query) or pages.setdefault(query, answer(names, parse_qs(query)).encode())
        start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(page)))])
        return [page]

    ServerHandler.http_version = "1.1"
    return make_server("127.0.0.1", port, app, _Threads, _KeepsAlive)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), float(sys.argv[3]), int(sys.argv[4])).serve_forever()
