"""Probabilities for tune, holdout, dev and test: runs a recipe up to the stage `score`, reusing what is finished.

python jobs/score.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="score")
