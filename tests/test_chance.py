"""Numbers that stand for texts: those of the stable ids, and others drawn from them."""

from collections import Counter

import numpy as np
import pytest

from ray_pipeline import chance
from ray_pipeline.text import stable_id, stable_number

TEXTS = ["", "mug", "größe", "靴", "half \ud83d", "a" * 1000]


def test_hashes_and_names_are_the_stable_ones() -> None:
    found = chance.hashes(TEXTS)
    assert found.tolist() == [stable_number(text) for text in TEXTS]
    assert chance.names(found).to_pylist() == [stable_id(text) for text in TEXTS]
    nothing = chance.hashes([])
    assert (nothing.dtype, len(nothing), len(chance.names(nothing))) == (np.uint64, 0, 0)


def test_mixed_is_one_to_one_and_even() -> None:
    found = chance.mixed(np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(found)) == 100_000
    assert Counter((found >> np.uint64(62)).tolist()) == pytest.approx(
        Counter(dict.fromkeys(range(4), 25_000)), rel=0.03
    )
    first = chance.mixed(np.zeros(1, np.uint64))
    assert first.tolist() == [16294208416658607535]  # the first output of splitmix64 from seed 0
