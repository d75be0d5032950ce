"""Threshold, figures, report and submission: runs a recipe up to the stage `evaluate`, reusing what is finished.

python jobs/evaluate.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="evaluate")
