"""How far a run has got: which stages are done, begun and left, and what was spent; does not start Ray.

    python jobs/status.py runs/work                                      # everything in a working folder
    python jobs/status.py jobs/recipes/demo-qc.yaml train.epochs=1       # the stages of a recipe, as it is now
    python jobs/status.py s3://my-bucket/runs/my-shop                    # a finished run, by its output
    python jobs/status.py runs/work --unused runs                        # what no run below runs/ has made or used

Dollars are what the answers in an artifact have cost, whichever run paid for them. --unused deletes nothing.
A stage that is begun is running now or was stopped; its command, run again, makes the shards that are missing.
Needs no cluster: it reads the working folder, also while a job on a cluster writes to it.
"""

import sys

from ray_pipeline.status import run

if __name__ == "__main__":
    sys.exit(run(__doc__))
