"""Originals and translations as one table without duplicates, label conflicts, or leaks between parts.

Rows are brought together by a hash of the normalised query, so that every question (same pair? same query in another
part?) is answered within one shard (`exact`). Where the recipe asks for it, a second shuffle by the bands of MinHash
brings nearly equal queries of one target together (`near`).
"""

from ray_pipeline.dedupe.stage import STAGE, config

__all__ = ["STAGE", "config"]
