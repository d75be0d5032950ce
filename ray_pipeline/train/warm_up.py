"""Compile what DeepSpeed compiles at its first use on CPU: `python -m ray_pipeline.train.warm_up`, about a minute."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OPERATION = "deepspeed_shm_comm"
"""By which workers of one node exchange gradients in shared memory; without it they do by gloo, which is slower."""


def prepare(device: str) -> None:
    """Set what DeepSpeed reads when it is imported: its device, and where the `ninja` of this environment lies.

    On CPU its shared-memory operation is built, or switched off and said so where that cannot be done.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    own = str(Path(sys.executable).parent)
    if own not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + os.environ.get("PATH", "")
    if device == "cpu" and (why := lacking() or _build()):
        _switch_off()
        text = f"DeepSpeed's shared-memory operation cannot be built, training on CPUs uses gloo alone: {why}"
        print(text, file=sys.stderr, flush=True)


def lacking() -> str | None:
    """What is missing to compile for Python; null if nothing is."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not compiler or shutil.which(compiler[0]) is None:
        return "there is no C++ compiler (on Debian and Ubuntu, the package g++)"
    header = python_header()
    if not header.exists():
        return f"there is no Python.h in {header.parent} (on Debian and Ubuntu, the package python3-dev)"
    command = [*compiler, "-x", "c++", "-fsyntax-only", "-"]
    tried = subprocess.run(command, input=b"#include <vector>", capture_output=True)
    if tried.returncode:
        return f"{compiler[0]} does not compile C++: {_first_line(tried.stderr)}"
    return None


def python_header() -> Path:
    """Where this Python's C header is, if it is installed: whatever is compiled for Python includes it."""
    return Path(sysconfig.get_path("include", scheme="posix_prefix"), "Python.h")


def _build() -> str | None:
    """Build the operation, or load what was built before; returns why it cannot be, null if it can."""
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    try:
        if builder is not None:  # other devices have no such operation
            builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        return _first_line(str(error).encode())
    return None


def _first_line(said: bytes) -> str:
    return next(iter(said.decode(errors="replace").strip().splitlines()), "it does not say why")


def _switch_off() -> None:
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__[OPERATION] = False


def main() -> None:
    """Build the operation, so that no run has to wait for it."""
    prepare("cpu")


if __name__ == "__main__":
    main()
