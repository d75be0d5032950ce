"""What the fan-out is compared with: a request per query, by google-genai alone and by Curator."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_pipeline.gemini import client, fanout
from ray_pipeline.gemini.client import RateLimited
from ray_pipeline.gemini.prompts import INSTRUCTIONS, Item, read_answer, user_text
from ray_pipeline.recipe import Gemini


async def one_by_one(gemini: Gemini, items: Sequence[Item]) -> dict[str, str]:
    """Translations by text, as one would ask without more thought: so many at once, 429 tried again when it says."""
    plain = client.connect(gemini)
    slots = asyncio.Semaphore(fanout.concurrency(gemini))
    config = client.settings(gemini, "translate", items[:1])

    async def ask(item: Item) -> str:
        text = user_text("translate", [item], ())
        async with slots:
            while True:
                asking = plain.aio.models.generate_content(model=gemini.model, contents=text, config=config)
                outcome: Any = await client.attempt(gemini, asking)
                if not isinstance(outcome, RateLimited):
                    return read_answer("translate", outcome.text, {item.key})[item.key]
                await asyncio.sleep(outcome.seconds or fanout.DEFAULT_PAUSE_SECONDS)

    try:
        answers = await asyncio.gather(*map(ask, items))
    finally:
        await client.disconnect(plain)
    return {item.text: answer for item, answer in zip(items, answers, strict=True)}


def ask_curator(python: str, gemini: Gemini, url: str, items: Sequence[Item]) -> dict[str, str]:
    """Translations by text, by Curator in a Python of its own."""
    with tempfile.TemporaryDirectory(prefix="curator-") as folder:
        questions, answers = Path(folder) / "questions.jsonl", Path(folder) / "answers.jsonl"
        system = INSTRUCTIONS["translate"]
        asked = [{"text": item.text, "system": system, "user": user_text("translate", [item], ())} for item in items]
        questions.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
        command = [python, "-P", str(Path(__file__).with_name("curator_peer.py")), url, gemini.model]
        command += [str(gemini.requests_per_minute), str(fanout.concurrency(gemini)), str(questions), str(answers)]
        quiet = {"TELEMETRY_ENABLED": "false", "CURATOR_DISABLE_RICH_DISPLAY": "1", "CURATOR_CACHE_DIR": folder}
        subprocess.run(
            command, check=True, stdout=sys.stderr, env=os.environ | quiet | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        )
        found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return {row["text"]: row["answer"] for row in found}
