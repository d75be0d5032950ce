"""The parts train, tune, holdout: runs a recipe up to the stage `split`, reusing what is finished.

python jobs/split.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="split")
