"""Checks a finished run: does everything hold that must hold? Every file, row and sum is looked at.

    python jobs/validate.py runs/demo
    python jobs/validate.py my-shop.yaml train.epochs=1 --workdir s3://my-bucket/work

A run's output folder stands for the artifacts that it has recorded, and has its submission checked too; recipes stand
for what they would make now. Exit code 0: all invariants hold; 1: some are violated, and each is named with file and
row. Needs no cluster: one process reads all files.
"""

import sys

from ray_pipeline.validation.command import run

if __name__ == "__main__":
    sys.exit(run(__doc__))
