"""The command that writes the sample shop's files: in this process, or as many shards on Ray.

python -m ray_pipeline.sandbox.write_shop --folder data/shop --rows 4000 --seed 7
python -m ray_pipeline.sandbox.write_shop --output s3://my-bucket/work/shop --rows 10000000
"""

import argparse
import os
import sys
from pathlib import Path

from ray_pipeline import problems, runtime
from ray_pipeline.recipe import Runtime
from ray_pipeline.sandbox import shop_shards
from ray_pipeline.sandbox.shop import TASKS, ShopSpec, write_shop


def main() -> None:
    """Write a shop from the command line: dev and test get a tenth of train's rows each."""
    parser = argparse.ArgumentParser(prog="python -m ray_pipeline.sandbox.write_shop", description="Write a shop.")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--folder", type=Path, help="write one file each, in this process; made if missing")
    place.add_argument("--output", help="folder or s3:// url: write many files each, on Ray, in constant memory")
    parser.add_argument("--rows", type=int, default=4000, help="rows of each train file (default 4000)")
    parser.add_argument("--seed", type=int, default=7, help="default 7")
    parser.add_argument("--shards", type=int, help="with --output: files of each train file (by 50,000 rows)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="with --output: only these")
    parser.add_argument(
        "--address", default="local", help="with --output: a Ray cluster's, or auto (a Ray started here)"
    )
    options = parser.parse_args()
    if options.rows < 1 or (options.shards is not None and options.shards < 1):
        parser.error("--rows and --shards must be at least 1")
    tenth = max(1, options.rows // 10)
    spec = ShopSpec(options.seed, options.rows, tenth, tenth)
    if options.output:
        sys.exit(_write_on_ray(spec, options))
    print("\n".join(str(path) for path in write_shop(spec, options.folder).values()))


def _write_on_ray(spec: ShopSpec, options: argparse.Namespace) -> int:
    def write() -> int:
        rows = -(-options.rows // options.shards) if options.shards else shop_shards.SHARD_ROWS
        output = options.output if "://" in options.output else os.path.abspath(options.output)
        print("\n".join(shop_shards.write(spec, output, options.tasks, rows, Runtime(address=options.address))))
        return 0

    try:
        return problems.exit_code(write, debug=False)
    finally:
        runtime.stop()


if __name__ == "__main__":
    main()
