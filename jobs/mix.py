"""The training set: runs a recipe up to the stage `mix`, reusing what is finished.

python jobs/mix.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="mix")
