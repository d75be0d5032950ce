"""LoRA fine-tuning to an adapter: runs a recipe up to the stage `train`, reusing what is finished.

python jobs/train.py jobs/recipes/demo-qc.yaml
"""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main(__doc__, until="train")
