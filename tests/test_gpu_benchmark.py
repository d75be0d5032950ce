"""The benchmark for a GPU runs in its tiny mode, in parts."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.parametrize("shape", [gpu.GEMMA, pytest.param(gpu.QWEN, marks=pytest.mark.soak)])
def test_both_ways_have_the_same_scores_and_a_second_run_makes_what_is_missing(
    tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    out = tmp_path / "gpu.json"
    arguments = ["--tiny", "--shapes", shape, "--out", str(out)]
    gpu.main(arguments)
    done = json.loads(out.read_text())
    ours, plain = (done[f"{shape} bfloat16 {part}"]["first_scores"] for part in ("score", "score plain"))
    assert ours[: len(plain)] == pytest.approx(plain, abs=2e-2) and len(set(plain)) > 1
    assert f"| {shape} bfloat16 train |" in capsys.readouterr().out

    del done[f"{shape} bfloat16 train"]
    out.write_text(json.dumps(done))
    gpu.main(arguments)
    again = json.loads(out.read_text())
    assert again.keys() == done.keys() | {f"{shape} bfloat16 train"}
    assert again[f"{shape} bfloat16 score"] == done[f"{shape} bfloat16 score"]
