"""Self-validation of the training set: runs a recipe up to the stage `self_validation`, reusing what is finished.

python jobs/self_validation.py jobs/recipes/demo-qc.yaml self_validation.folds=3
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="self_validation")
