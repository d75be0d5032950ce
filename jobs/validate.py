r"""Checks a finished run: does everything hold that must hold? Every file, row and sum is looked at.

    python jobs/validate.py runs/demo
    python jobs/validate.py my-shop.yaml train.epochs=1 --workdir s3://my-bucket/work

A run's output folder stands for the artifacts that it has recorded, and has its submission checked too; recipes stand
for what they would make now. Exit code 0: all invariants hold; 1: some are violated, and each is named with file and
row. Needs no Ray: a large run is looked at by one process per CPU. Or on a cluster, from the project's folder:

    ray job submit --runtime-env cluster/runtime_env.yaml --submission-id validate-1 -- \
        python jobs/validate.py s3://my-bucket/runs/my-shop --workdir s3://my-bucket/work --address auto
"""

import sys

if __name__ == "__main__":
    from ray_pipeline.validation.command import run  # not above: the processes that it starts would wait for it, too

    sys.exit(run(__doc__))
