r"""LoRA fine-tuning to an adapter: runs a recipe up to the stage `train`, reusing what is finished.

    python jobs/train.py jobs/recipes/demo-qc.yaml

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id train-1 -- \
        python jobs/train.py jobs/recipes/my-shop.yaml runtime.address=auto --workdir s3://my-bucket/work
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="train")
