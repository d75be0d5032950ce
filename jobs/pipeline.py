r"""The main job: one or more recipes, from raw files to report and submission.

    python jobs/pipeline.py jobs/recipes/demo-qc.yaml jobs/recipes/demo-qi.yaml --output runs/demo
    python jobs/pipeline.py jobs/recipes/paper-qc.yaml --dry-run
    python jobs/pipeline.py jobs/recipes/demo-qc.yaml train.epochs=1 --until train

The same command, run again, resumes where it was stopped; nothing that is finished is computed again.

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id pipeline-1 -- \
        python jobs/pipeline.py jobs/recipes/my-shop.yaml runtime.address=auto \
        --workdir s3://my-bucket/work --output s3://my-bucket/runs/my-shop
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__)
