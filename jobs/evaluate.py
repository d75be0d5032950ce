r"""Threshold, figures, report and submission: runs a recipe up to the stage `evaluate`, reusing what is finished.

    python jobs/evaluate.py jobs/recipes/demo-qc.yaml

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id evaluate-1 -- \
        python jobs/evaluate.py jobs/recipes/my-shop.yaml runtime.address=auto \
        --workdir s3://my-bucket/work --output s3://my-bucket/runs/my-shop
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="evaluate")
