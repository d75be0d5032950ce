"""What is compiled for training on CPUs, and what is said where it cannot be."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ray_pipeline.train import warm_up

JOINED = """
import deepspeed, torch
from ray_pipeline.train import warm_up
warm_up.prepare("cpu")
deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
torch.distributed.barrier()
print("operation:", deepspeed.comm.comm.cdb.shm_comm_op)
"""
PLACE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def test_a_machine_that_compiles_lacks_nothing() -> None:
    assert warm_up.lacking() is None


def test_without_a_compiler_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "the package g++" in str(warm_up.lacking())


def test_a_compiler_that_does_not_work_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho cannot execute cc1plus >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert str(warm_up.lacking()).endswith("does not compile C++: cannot execute cc1plus")


def test_without_the_headers_their_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda *_, **__: str(tmp_path))
    assert "the package python3-dev" in str(warm_up.lacking())


def test_workers_join_by_gloo_alone_where_nothing_can_be_compiled(tmp_path: Path) -> None:
    environment = os.environ | PLACE | {"CXX": "no-such-compiler", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "-c", JOINED], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert "operation: None" in made.stdout
    assert made.stderr.count("uses gloo alone: there is no C++ compiler") == 1


@pytest.mark.parametrize(("compiler", "said"), [("no-such-compiler", "the package g++"), ("half", "uses gloo alone")])
def test_the_set_up_goes_on_where_the_operation_cannot_be_built(tmp_path: Path, compiler: str, said: str) -> None:
    half = tmp_path / "half"
    half.write_text('#!/bin/sh\ncase "$*" in *-fsyntax-only*) exit 0;; esac\nexit 1\n')
    half.chmod(0o755)
    environment = os.environ | {"CXX": str(half) if compiler == "half" else compiler}
    environment["TORCH_EXTENSIONS_DIR"] = str(tmp_path / "built")
    command = [sys.executable, "-m", "ray_pipeline.train.warm_up"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert made.stderr.count(said) == 1
