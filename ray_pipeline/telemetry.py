"""What workers tell Ray of their work, shard by shard; Prometheus reads it from every node's metrics port."""

from ray_pipeline.artifact import Counts

NAMES = {
    "pipeline_rows": "Rows by stage: in, out, rejected",
    "pipeline_shards": "Shards written, by stage",
    "pipeline_shard_seconds": "Seconds that workers were busy with shards, by stage",
}
"""Ray's names of the counters; Prometheus knows each as `ray_<name>_total`."""


class Telemetry:
    """The counters of one worker of a stage."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter

        tags = {"pipeline_rows": ("stage", "outcome")}
        self._counters = {name: Counter(name, text, tags.get(name, ("stage",))) for name, text in NAMES.items()}
        self._stage = {"stage": stage}

    def add(self, counts: Counts, seconds: float) -> None:
        """Count a shard that was written and the seconds that it took."""
        rows = {"in": counts.rows_in, "out": counts.rows_out, "rejected": counts.rows_rejected}
        for outcome, number in rows.items():
            if number:
                self._counters["pipeline_rows"].inc(number, {**self._stage, "outcome": outcome})
        self._counters["pipeline_shards"].inc(1, self._stage)
        if seconds > 0:
            self._counters["pipeline_shard_seconds"].inc(seconds, self._stage)
