"""Vectors of unique targets: runs a recipe up to the stage `embed`, reusing what is finished.

python jobs/embed.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="embed")
