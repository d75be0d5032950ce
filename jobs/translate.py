"""Translations by Gemini: runs a recipe up to the stage `translate`, reusing what is finished.

python jobs/translate.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="translate")
