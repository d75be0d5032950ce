"""Which way a stage asks Gemini in `mode: auto`: by what its shards have still to ask."""

from pathlib import Path

import pyarrow as pa
import pytest

from ray_pipeline import questions, shards, tables
from ray_pipeline.gemini import ledger
from ray_pipeline.gemini.ledger import Answer, Log
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.questions import Questions
from ray_pipeline.recipe import Gemini, Price

from . import made

ROWS = 90
GEMINI = Gemini(mode="auto", price=Price(input=2000, output=2000, batch_input=1000, batch_output=1000))


def items(table: pa.Table) -> list[Item]:
    return [Item(text, "en", "de") for text in table.column("query").to_pylist()]


@pytest.mark.parametrize(("answered", "expected"), [(0, "batch"), (ROWS // 2, "batch"), (ROWS - 1, "live")])
def test_batch_jobs_are_made_for_what_is_not_answered_yet(
    answered: int, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [made.pair(i, query=f"a red shoe of kind {i}") for i in range(ROWS)]
    sources = shards.sources([made.finished(tmp_path, "split", rows, tables.PAIRS, shards=3)])
    folder = ledger.folder(str(tmp_path), GEMINI, "translate", ())
    log = Log(folder, 0, 0xFFFF)
    log.append([Answer(Item(row["query"], "en", "de").key, "Schuh") for row in rows[:answered]])
    log.close()
    chosen = questions._is_chosen(GEMINI, sources, Questions("translate", (), items), folder, "translate")
    assert chosen == (expected == "batch") and f"translate: {expected}: batch mode saves" in capsys.readouterr().err
