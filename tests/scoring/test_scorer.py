"""What does not fit the memory is tried in halves, down to the row at fault; threads share one model."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ray_pipeline import memory
from ray_pipeline.errors import ModelError, OutOfMemoryError
from ray_pipeline.prompt import Prompt
from ray_pipeline.recipe import Runtime
from ray_pipeline.scoring import adapters
from ray_pipeline.scoring import scorer as scorers
from ray_pipeline.scoring.scorer import Batches, Scorer, Scores, at_once, within_memory
from ray_pipeline.train import loop, queries
from ray_pipeline.train.batches import Prompts, Rows
from ray_pipeline.train.model import Padded, pad

from . import made_adapters


class Narrow(torch.nn.Module):
    """Its logit is the prompt's first token; a batch of more tokens than its memory holds raises as torch does."""

    def __init__(self, tokens: int, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.error = error
        self.tokens, self.batches = tokens, list[int]()
        self.reads_packed = False

    def batch(self, rows: Prompts, pad_id: int, device: str, *sharing: object) -> Padded:
        return pad(rows, pad_id, device)

    def forward(self, rows: Padded) -> torch.Tensor:
        if rows.ids.numel() > self.tokens:
            raise self.error or torch.OutOfMemoryError(f"{rows.ids.numel()} tokens")
        self.batches.append(len(rows.ids))
        return rows.ids[:, 0].float() / 10


def scores(model: Narrow, prompts: list[list[int]], batch_rows: int) -> tuple[Scores, list[int]]:
    def score(rows: Rows, smaller: int) -> Scores:
        return loop.score(model, [prompts[row] for row in rows], 0, "cpu", max(1, batch_rows // smaller))

    found, unfit = within_memory(score, queries.order(prompts, [0] * len(prompts)), 8 * batch_rows)
    return found, np.flatnonzero(unfit).tolist()


def prompts(lengths: list[int]) -> list[list[int]]:
    return [[i, *[1] * (length - 1)] for i, length in enumerate(lengths)]


def expected(count: int) -> list[float]:
    return torch.sigmoid(torch.arange(count) / 10).tolist()


def test_what_fits_is_scored_in_batches_as_asked() -> None:
    model = Narrow(10**6)
    found, unfit = scores(model, prompts([3] * 100), 32)
    assert found.tolist() == pytest.approx(expected(100)) and unfit == []
    assert sorted(model.batches) == [4, 32, 32, 32]


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model = Narrow(tokens=120)
    found, unfit = scores(model, prompts([10] * 100), 64)
    assert found.tolist() == pytest.approx(expected(100)) and unfit == []
    assert max(model.batches) <= 12


def driver_s(number: int) -> RuntimeError:
    """What torch raises where the driver answers a call with a number."""
    error = torch.AcceleratorError("CUDA error")
    error.error_code = number
    return error


def test_an_allocation_that_the_driver_refuses_is_a_lack_of_memory_and_other_errors_are_not() -> None:
    found, unfit = scores(Narrow(120, driver_s(memory.REFUSED)), prompts([10] * 100), 64)
    assert found.tolist() == pytest.approx(expected(100)) and unfit == []
    for error in (driver_s(700), RuntimeError("CUDA out of memory")):
        with pytest.raises(type(error)):
            scores(Narrow(120, error), prompts([10] * 100), 64)
    with pytest.raises(OutOfMemoryError, match="too large"), memory.enough(lambda: OutOfMemoryError("too large")):
        raise driver_s(memory.REFUSED)


def test_a_row_that_does_not_fit_alone_is_named_and_the_others_are_scored() -> None:
    found, unfit = scores(Narrow(tokens=50), prompts([5, 60, 7, 9, 51, 50]), 4)
    assert unfit == [1, 4] and np.isnan(found[[1, 4]]).all()
    kept = [0, 2, 3, 5]
    assert found[kept].tolist() == pytest.approx([expected(6)[i] for i in kept])


def test_where_no_row_fits_it_is_not_the_rows() -> None:
    with pytest.raises(ModelError, match="out of memory: none of 3 rows fits"):
        scores(Narrow(tokens=1), prompts([5, 6, 7]), 4)


class Members(list[Narrow]):
    """Several models, in place of adapters."""

    tokenizer = SimpleNamespace(pad_token_id=0)


def test_a_row_that_does_not_fit_with_one_of_several_adapters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "Members", lambda *_: Members([Narrow(tokens=50), Narrow(tokens=10**6)]))
    found, unfit = scorers.Transformers([], "cpu", Batches(rows=4))(prompts([5, 60, 7]), [0] * 3)
    assert unfit.tolist() == [False, True, False] and np.isnan(found[1])
    assert found[[0, 2]].tolist() == pytest.approx([expected(3)[i] for i in (0, 2)])


def test_no_prompts() -> None:
    found, unfit = scores(Narrow(tokens=1), [], 4)
    assert found.shape == (0,) and unfit == []


def test_a_batch_is_what_suits_the_device_unless_it_is_chosen() -> None:
    assert Batches.of(Runtime()).on("cpu") == Batches(rows=64)
    assert Batches.of(Runtime(gpus_per_worker=1)).on("cuda") == Batches(tokens=16_384)
    for chosen in (Batches(rows=8), Batches(tokens=100), Batches(8, 100)):
        assert chosen.on("cuda") == chosen.on("cpu") == chosen
    assert Batches(rows=8).smaller(4) == Batches(rows=2) and Batches(tokens=3).smaller(4) == Batches(tokens=1)


def test_a_worker_with_a_gpu_has_two_shards_under_way() -> None:
    assert (at_once(1, "transformers"), at_once(0.5, "transformers"), at_once(0, "transformers")) == (2, 2, 1)
    assert at_once(1, "vllm") == 1


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = made_adapters.adapter(tmp_path_factory.mktemp("adapters") / "one", 1)
    return Scorer(adapters.read([folder]), "cpu", Batches())


ROWS: list[dict[str, Any]] = [{"query": query, "target": "Shoes"} for query in ("lamp", "red shoes", "lamp", "kettle")]


def test_equal_prompts_are_scored_once_or_each_by_itself(tmp_path: Path, scorer: Scorer) -> None:
    once = scorer(ROWS)
    chosen = adapters.read([made_adapters.adapter(tmp_path / "one", 1)])
    each = Scorer(chosen, "cpu", Batches(unique=False))(ROWS)
    assert (once.repeated, each.repeated) == (1, 0) and once.scores[0] == once.scores[2]
    assert each.scores.tolist() == pytest.approx(once.scores.tolist(), abs=1e-5)
    assert len(set(once.scores.tolist())) == 3


def test_prompts_are_encoded_while_others_are_scored(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, real = threading.Event(), Prompt.encode

    def encode(*arguments: Any) -> Any:
        found = real(*arguments)
        encoded.set()
        return found

    monkeypatch.setattr(Prompt, "encode", encode)
    with ThreadPoolExecutor(1) as thread:
        with scorer._one_scores:  # as a shard that is on the GPU
            other = thread.submit(scorer, ROWS)
            assert encoded.wait(30) and not other.done()
        assert len(other.result(30).scores) == 4
