"""Corrected language tags: runs a recipe up to the stage `languages`, reusing what is finished.

python jobs/languages.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="languages")
