"""Easy and hard negatives: runs a recipe up to the stage `negatives`, reusing what is finished.

python jobs/negatives.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="negatives")
