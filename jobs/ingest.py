"""Raw files to validated pairs: runs a recipe up to the stage `ingest`, reusing what is finished.

python jobs/ingest.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="ingest")
