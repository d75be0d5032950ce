r"""Out-of-fold scores of the training rows: runs a recipe up to the stage `out_of_fold`, reusing what is finished.

    python jobs/out_of_fold.py jobs/recipes/demo-qc.yaml self_validation.folds=3

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id out_of_fold-1 -- \
        python jobs/out_of_fold.py jobs/recipes/my-shop.yaml runtime.address=auto --workdir s3://my-bucket/work
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="out_of_fold")
