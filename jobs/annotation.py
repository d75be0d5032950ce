"""People's judgement of the translations: sheets out, filled sheets in, rates and agreement.

    python jobs/annotation.py export jobs/recipes/demo-qc.yaml --sheet sheets/qc.xlsx --rows 300 --annotators 2
    python jobs/annotation.py read sheets/qc-1.xlsx sheets/qc-2.xlsx jobs/recipes/demo-qc.yaml

The recipe's audit must be finished (python jobs/audit.py RECIPE). What was read appears in the report of the next run.
Needs no cluster, even if the audit was made on one: name its --workdir.
"""

import sys

from ray_pipeline.annotation.command import run

if __name__ == "__main__":
    sys.exit(run(__doc__))
