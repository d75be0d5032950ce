"""Pairs without duplicates, conflicts and leaks: runs a recipe up to the stage `dedupe`, reusing what is finished.

python jobs/dedupe.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="dedupe")
