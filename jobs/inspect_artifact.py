"""What an artifact holds: schema, counts, rejected rows, histograms, examples; as text and as one HTML page.

    python jobs/inspect_artifact.py runs/work/mix/<fingerprint> --html mix.html
    python jobs/inspect_artifact.py negatives --workdir runs/work

A stage's name stands for its newest artifact in the working folder, which may be an s3:// url: needs no cluster.
(The file is not named inspect.py, which every other job would then import in place of Python's own module.)
"""

import sys

from ray_pipeline.inspection.command import run

if __name__ == "__main__":
    sys.exit(run(__doc__))
