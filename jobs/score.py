"""Probabilities of relevance: for pairs of your own with a saved adapter, or for what a recipe has.

    python jobs/score.py --adapter runs/work/train/<fingerprint>/adapter --input pairs/ --output scores
    python jobs/score.py jobs/recipes/demo-qc.yaml

The first needs no recipe, and goes on where it was stopped if the same command comes again; `--help --adapter` shows
its options. The second runs a recipe up to the stage `score`, reusing what is finished.
"""

from ray_pipeline.scoring.command import main

if __name__ == "__main__":
    main(__doc__)
