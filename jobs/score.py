r"""Probabilities for tune, holdout, dev and test: runs a recipe up to the stage `score`, reusing what is finished.

python jobs/score.py jobs/recipes/demo-qc.yaml

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id score-1 -- \
        python jobs/score.py jobs/recipes/my-shop.yaml runtime.address=auto --workdir s3://bucket/work
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="score")
