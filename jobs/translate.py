r"""Translations by Gemini or a local model: runs a recipe up to the stage `translate`, reusing what is finished.

    python jobs/translate.py jobs/recipes/demo-qc.yaml

On a cluster, from the project's folder, with recipes and data that its nodes can read:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id translate-1 -- \
        python jobs/translate.py jobs/recipes/my-shop.yaml runtime.address=auto --workdir s3://my-bucket/work
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="translate")
