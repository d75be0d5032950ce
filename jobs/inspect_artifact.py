r"""What an artifact holds: schema, counts, rejected rows, histograms, examples; as text and as one HTML page.

    python jobs/inspect_artifact.py runs/work/mix/<fingerprint> --html mix.html
    python jobs/inspect_artifact.py negatives --workdir runs/work

A stage's name stands for its newest artifact in the working folder, which may be an s3:// url. Needs no Ray: a large
artifact is looked at by one process per CPU. Or on a cluster, from the project's folder:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id inspect-1 -- \
        python jobs/inspect_artifact.py mix --workdir s3://my-bucket/work --address auto

(The file is not named inspect.py, which every other job would then import in place of Python's own module.)
"""

import sys

if __name__ == "__main__":
    from ray_pipeline.inspection.command import run  # not above: the processes that it starts would wait for it, too

    sys.exit(run(__doc__))
