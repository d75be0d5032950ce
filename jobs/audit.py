"""Faithful translations only: runs a recipe up to the stage `audit`, reusing what is finished.

python jobs/audit.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="audit")
