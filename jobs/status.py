"""How far a run is: what is done, begun and left of its stages, and what was spent; starts no Ray.

    python jobs/status.py runs/work                                      # everything in a working folder
    python jobs/status.py jobs/recipes/demo-qc.yaml train.epochs=1       # the stages of a recipe
    python jobs/status.py s3://my-bucket/runs/my-shop --workdir s3://my-bucket/work   # a finished run, by its output

A stage that is begun is running now or was stopped; the command that runs it goes on with the shards that are missing.
"""

from ray_pipeline.status import main

if __name__ == "__main__":
    main(__doc__)
