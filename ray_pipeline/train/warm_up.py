"""Compile what DeepSpeed compiles at its first use on CPU: `python -m ray_pipeline.train.warm_up`, about a minute."""

import os
import sys
from pathlib import Path


def prepare(device: str) -> None:
    """Set what DeepSpeed reads when it is imported: its device, and where the `ninja` of this environment lies."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    own = str(Path(sys.executable).parent)
    if own not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + os.environ.get("PATH", "")


def main() -> None:
    """Build the shared-memory communication operation, or say why training will do without it."""
    prepare("cpu")
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible(verbose=True):
        print("DeepSpeed's shared-memory operation cannot be built here; training uses gloo alone")
        return
    builder.load(verbose=False)
    print("DeepSpeed's shared-memory operation is ready")


if __name__ == "__main__":
    main()
