r"""Many recipes or variants against a baseline: one table with intervals, significance, cost and time.

    python jobs/ablation.py jobs/recipes/ablations/demo-ladder.yaml
    python jobs/ablation.py jobs/recipes/ablations/ladder-qc.yaml --seeds 0 1 2 --output runs/ladder-qc
    python jobs/ablation.py my-shop.yaml my-shop-without-negatives.yaml --seeds 0 1

What the recipes agree on is made once, runs follow one another, and the same command resumes where it was stopped.
Options such as --seeds come after the files. On a cluster, from the project's folder, with recipes and data that its
nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id ablation-1 -- \
        python jobs/ablation.py jobs/recipes/my-ladder.yaml runtime.address=auto --seeds 0 1 2 \
        --workdir s3://my-bucket/work --output s3://my-bucket/runs/my-ladder
"""

import sys

from ray_pipeline import logs, runtime
from ray_pipeline.ablation.command import run

if __name__ == "__main__":
    logs.start()
    try:
        sys.exit(run(__doc__))
    finally:
        runtime.stop()
