r"""Probabilities of relevance: for your own pairs with a saved adapter, or for the data of a recipe.

    python jobs/score.py --adapter runs/work/train/<fingerprint>/adapter --input pairs/ --output scores
    python jobs/score.py jobs/recipes/demo-qc.yaml

The first needs no recipe, and resumes where it was stopped if it is run again; `--help --adapter` shows its options.
The second runs a recipe up to the stage `score`, reusing what is finished.

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id score-1 -- \
        python jobs/score.py jobs/recipes/my-shop.yaml runtime.address=auto --workdir s3://my-bucket/work
    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id score-2 -- \
        python jobs/score.py --adapter s3://my-bucket/work/train/<fingerprint>/adapter --address auto \
        --input s3://my-bucket/raw/pairs/ --output s3://my-bucket/runs/scores --gpus-per-worker 1 --workers 4
"""

from ray_pipeline.scoring.command import main

if __name__ == "__main__":
    main(__doc__)
