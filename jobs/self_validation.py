r"""Self-validation of the training set: runs a recipe up to the stage `self_validation`, reusing what is finished.

    python jobs/self_validation.py jobs/recipes/demo-qc.yaml self_validation.folds=3

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id self_validation-1 -- \
        python jobs/self_validation.py jobs/recipes/my-shop.yaml runtime.address=auto --workdir s3://my-bucket/work
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="self_validation")
