"""The rows of an artifact a slice at a time: memory stays the same however large a shard is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_pipeline import artifact, storage
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import CorruptArtifactError, InputError

SLICE_ROWS = 16_384


@dataclass(frozen=True)
class Slice:
    """Some rows of a shard that follow one another."""

    url: str
    start: int
    """Row of the shard, from 0, that it begins with."""
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)


def slices(url: str, columns: Sequence[str] | None = None, rows: int = SLICE_ROWS) -> Iterator[Slice]:
    """The rows of one Parquet file in their order; raises CorruptArtifactError where it is damaged or missing."""
    with storage.open_parquet(url) as file:
        start = 0
        for batch in file.iter_batches(rows, columns=None if columns is None else list(columns)):
            yield Slice(url, start, pa.Table.from_batches([batch]))
            start += batch.num_rows


def footer(url: str) -> tuple[int, pa.Schema]:
    """(rows, schema without metadata) of one Parquet file, by its footer alone."""
    with storage.open_parquet(url) as file:
        return file.metadata.num_rows, file.schema_arrow.remove_metadata()


def rejected_files(item: Artifact) -> list[str]:
    """Urls of the files that hold an artifact's rejected rows."""
    return artifact.rejected_files(item.url)


def refused(item: Artifact, columns: Sequence[str]) -> Iterator[Slice]:
    """An artifact's rejected rows; raises CorruptArtifactError where there are not as many as its manifest says."""
    found = 0
    for url in rejected_files(item):
        for piece in slices(url, columns):
            found += len(piece)
            yield piece
    if found != item.manifest.rows_rejected:
        raise CorruptArtifactError(
            f"{storage.join(item.url, 'rejected')}: holds {found} rows, its manifest says "
            f"{item.manifest.rows_rejected}; delete the folder {item.url} and run the same command again"
        )


def finished(folder: str) -> Artifact:
    """The artifact of a folder; raises InputError if there is none, CorruptArtifactError if it is not whole."""
    found = artifact.load(folder)
    if found is None and not storage.list_files(folder):
        raise InputError(f"{folder}: no such folder, or nothing in it; name the folder of an artifact, or a stage")
    if found is None:
        raise InputError(
            f"{folder}: holds no {artifact.MANIFEST}: it is no artifact, or its stage has not ended; "
            "run the command that makes it again, or name another folder"
        )
    there = storage.for_each(footer, found.shards)
    for url, (held, _), rows in zip(found.shards, there, found.manifest.shards.values(), strict=True):
        if held != rows:
            raise CorruptArtifactError(
                f"{url}: holds {held} rows, its manifest says {rows}; "
                f"delete the folder {folder} and run the same command again"
            )
    return found
