"""Chance that rests on texts: a number for each, many at a time, the same on every machine and in every order."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]
NONE = -1
"""Stands for a row that is not there."""


def hashes(texts: Sequence[str]) -> Hashes:
    """`text.stable_number` of each text: uint64 `[n]`."""
    digests = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def lookup(keys: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Where each of `wanted` stands among rising `keys`; NONE where it does not."""
    if not len(keys):
        return np.full(len(wanted), NONE)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, NONE)


def among(texts: pa.ChunkedArray, chosen: Hashes) -> npt.NDArray[np.bool_]:
    """Which texts have one of some hashes, which rise: `[n]`."""
    if not len(chosen):
        return np.zeros(len(texts), np.bool_)
    return np.asarray(lookup(chosen, hashes(texts.to_pylist())) != NONE)


def names(numbers: Hashes) -> pa.Array:
    """`text.stable_id` of the texts that have these hashes: strings `[n]`."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    ends = np.arange(len(numbers) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(ends), pa.py_buffer(digits))


def mixed(numbers: Hashes) -> Hashes:
    """Other numbers, one for each, that have nothing in common with them (the finaliser of splitmix64)."""
    found = numbers + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
