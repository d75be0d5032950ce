"""Many recipes or variants against a baseline: one table with intervals, significance, cost and time.

    python jobs/ablation.py jobs/recipes/ablations/demo-ladder.yaml
    python jobs/ablation.py jobs/recipes/ablations/ladder-qc.yaml --seeds 0 1 2 --output runs/ladder-qc
    python jobs/ablation.py my-shop.yaml my-shop-without-negatives.yaml --seeds 0 1

What the recipes agree on is made once, runs follow one another, and the same command resumes where it was stopped.
Options such as --seeds come after the files.
"""

import logging
import sys

from ray_pipeline import runtime
from ray_pipeline.ablation.command import run

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        sys.exit(run(__doc__))
    finally:
        runtime.stop()
