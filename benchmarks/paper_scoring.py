"""On paper: a billion pairs scored on 64 GPUs of which spot takes 5 % an hour. Arithmetic, not a run.

    python -m benchmarks.paper_scoring

Requests of a shard were counted at a local S3, and the time of a footer is that of RESULTS.md, "Storage"; a GPU's
speed, prices on spot and how long a node takes to come are assumptions, and say so.
"""

import argparse
from dataclasses import dataclass

from benchmarks import results

PAIRS = 1_000_000_000
GPUS = 64
LOST_AN_HOUR = 0.05
"""The share of nodes that is lost in an hour; each has one GPU."""
SPOT_USD = 3.004 * 0.4
"""An hour of g6e.4xlarge (one L40S): its list price in us-east-1, and 40 % of it on spot; an assumption."""
HEAD_USD = 0.2016
"""An hour of m7i.xlarge on demand, which spot does not take."""
PARAMETERS, TOKENS = 12e9, 80
"""The base's weights; a pair's tokens without the shared prefix, whose keys and values are computed once."""
FLOPS = 362e12 / 3
"""A second, of an L40S: a third of its dense peak in bfloat16; an assumption, where an H100 has shown 51 to 57 %."""
COMING_SECONDS = 600
"""From a node's loss until its successor scores: to be given one, boot, pull the image, load; an assumption."""
BASE_GB = 24
"""What a node reads to load the base in two bytes a parameter."""
UPLINK_GB = 1.25
"""A second, of the one way out to the internet that the nodes share; an assumption."""
ROW_BYTES = {"in": 60, "out": 20}
PUTS, READS = 1, 6
"""For a shard: 1 PUT; 2 GET and 1 HEAD for its piece, 1 GET and 1 HEAD before the write, 1 GET for the account."""
PUT_USD, READ_USD, GB_MONTH_USD = 0.005 / 1000, 0.0004 / 1000, 0.023
"""S3 Standard, us-east-1."""
FOOTER_SECONDS = 1.336 / 500
"""The time to read a shard's footer at 20 ms a request, 32 under way."""
STORE_BYTES = 2_000
"""In Ray's object store, of a shard: what it is, and its counts. The rows go from S3 to the worker and back."""


@dataclass(frozen=True)
class Plan:
    """What a size of shards leads to."""

    shard_rows: int

    @property
    def rate(self) -> float:
        """Pairs a second of one GPU."""
        return FLOPS / (2 * PARAMETERS * TOKENS)

    @property
    def shards(self) -> int:
        """How many there are."""
        return PAIRS // self.shard_rows

    @property
    def shard_seconds(self) -> float:
        """One shard on one GPU."""
        return self.shard_rows / self.rate

    @property
    def lost_share(self) -> float:
        """The share of the GPUs' time that losses take: half a shard each, and until another node scores."""
        return LOST_AN_HOUR * (self.shard_seconds / 2 + COMING_SECONDS) / 3600

    @property
    def hours(self) -> float:
        """From the first shard to the last, at whose end half of the GPUs have nothing to do any more."""
        undisturbed = PAIRS / (GPUS * self.rate) / 3600
        return undisturbed / (1 - self.lost_share) + self.shard_seconds / 2 / 3600

    @property
    def losses(self) -> float:
        """Nodes lost in that time."""
        return GPUS * LOST_AN_HOUR * self.hours

    @property
    def footers_hours(self) -> float:
        """In which the driver reads every shard's footer, at the end and when the job goes on."""
        return self.shards * FOOTER_SECONDS / 3600

    @property
    def request_usd(self) -> float:
        """All requests to S3."""
        return self.shards * (PUTS * PUT_USD + READS * READ_USD)

    @property
    def usd(self) -> float:
        """GPUs, paid for all the time, head and requests."""
        return self.hours * (GPUS * SPOT_USD + HEAD_USD) + self.request_usd


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """(What, how it comes about, how much)."""
    lost = plan.losses * (plan.shard_seconds / 2 + COMING_SECONDS) / 3600
    again = plan.losses * plan.shard_rows / 2
    gb = {name: PAIRS * size / 1e9 for name, size in ROW_BYTES.items()}
    a_second = (PUTS + READS) * plan.shards / plan.hours / 3600
    return [
        ("a GPU", f"{FLOPS:.2e} / (2 x {PARAMETERS:.1e} x {TOKENS} tokens)", f"{plan.rate:.0f} pairs a second"),
        ("shards", f"{PAIRS:,} / {plan.shard_rows:,}", f"{plan.shards:,} of {plan.shard_seconds / 60:.1f} min"),
        ("undisturbed", f"{PAIRS:,} / ({GPUS} x {plan.rate:.0f} a second)", f"{PAIRS / GPUS / plan.rate / 3600:.1f} h"),
        ("nodes lost", f"{GPUS} x {LOST_AN_HOUR:.0%} x {plan.hours:.1f} h", f"{plan.losses:.0f}"),
        ("scored twice", f"{plan.losses:.0f} x half a shard", f"{again:,.0f} pairs, {again / PAIRS:.2%}"),
        (
            "GPU time lost",
            f"{plan.losses:.0f} x ({plan.shard_seconds / 2:.0f} s + {COMING_SECONDS} s until another scores)",
            f"{lost:.0f} GPU-hours, {plan.lost_share:.1%}",
        ),
        (
            "driver lost",
            f"{GPUS} x half a shard; the same command goes on",
            f"{GPUS * plan.shard_seconds / 7200:.1f} GPU-hours",
        ),
        ("time", "with the losses, and half a shard at the end", f"{plan.hours:.1f} h"),
        ("dollars", f"({GPUS} x {SPOT_USD:.2f} + {HEAD_USD}) x {plan.hours:.1f} h + requests", f"{plan.usd:,.0f} USD"),
        ("a million pairs", f"{plan.usd:,.0f} USD / {PAIRS / 1e6:.0f}", f"{plan.usd / PAIRS * 1e6:.2f} USD"),
        (
            "requests to S3",
            f"{plan.shards:,} x ({PUTS} write + {READS} reads)",
            f"{a_second:.2f} a second, {plan.request_usd:.2f} USD",
        ),
        (
            "on S3",
            f"{gb['in']:.0f} GB read, {gb['out']:.0f} GB written",
            f"{sum(gb.values()) * GB_MONTH_USD:.2f} USD a month",
        ),
        (
            "the driver's account",
            f"{plan.shards:,} footers x {FOOTER_SECONDS * 1e3:.1f} ms",
            f"{60 * plan.footers_hours:.1f} min",
        ),
        (
            "in the object store",
            f"{plan.shards:,} x {STORE_BYTES / 1e3:.0f} kB",
            f"{plan.shards * STORE_BYTES / 1e6:.0f} MB",
        ),
        (
            "the base, by internet",
            f"{GPUS} x {BASE_GB} GB / {UPLINK_GB} GB a second, {plan.losses:.0f} more later",
            f"{GPUS * BASE_GB / UPLINK_GB / 60:.0f} min, {GPUS * GPUS * BASE_GB / UPLINK_GB / 3600:.0f} GPU-hours idle",
        ),
    ]


def sizes() -> list[tuple[str, ...]]:
    """What the size of shards changes."""
    found: list[tuple[str, ...]] = []
    for plan in map(Plan, (500_000, 50_000, 5_000, 500)):
        found.append(
            (
                f"{plan.shard_rows:,}",
                f"{plan.shards:,}",
                f"{plan.shard_seconds / 60:.1f} min",
                f"{plan.lost_share:.1%}",
                f"{plan.hours:.1f} h",
                f"{60 * plan.footers_hours:.1f} min",
                f"{plan.shards * STORE_BYTES / 1e6:,.0f} MB",
                f"{plan.request_usd:.2f} USD",
            )
        )
    return found


def main() -> None:
    """Print the tables and keep them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = results.table(("what", "arithmetic", "result"), rows(Plan(50_000)))
    head = ("rows a shard", "shards", "of", "GPU time lost", "time", "driver's account", "object store", "requests")
    text += "\n\n" + results.table(head, sizes())
    breaks = (
        "What breaks first is the start: 64 nodes that fetch the base from the internet at once stand idle on one "
        "uplink. The knob is `HF_HOME` on a file system that all nodes have, or the base in the image. Next is the "
        "driver, if shards are small: it reads every footer at the end and whenever the job goes on, and Ray tracks "
        "every shard (`--shard-rows`; 5,000 to 50,000 lose nothing worth mentioning). S3's limits (3,500 writes and "
        "5,500 reads a second and prefix) and the object store are far away. Losses themselves cost little: nearly all "
        "of it is waiting for the next node, not work done twice."
    )
    about = f"Not a run, and no GPU of this kind was measured.\n\n{breaks}"
    results.keep(
        "paper_scoring", "A billion pairs scored on 64 spot GPUs, on paper", f"{about}\n\n{results.command()}\n\n{text}"
    )
    print(text)


if __name__ == "__main__":
    main()
