"""Curator on the questions of `benchmarks.fanout`; run by a Python that has bespokelabs-curator, which needs no Ray.

    python curator_peer.py URL MODEL REQUESTS_PER_MINUTE CONCURRENT QUESTIONS ANSWERS

`QUESTIONS` holds JSON lines with `text`, `system` and `user`; `ANSWERS` gets one with `text` and `answer` for each.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bespokelabs import curator  # type: ignore[import-not-found]

FIELDS = {"key": {"type": "string"}, "text": {"type": "string"}}
SCHEMA = {"type": "array", "items": {"type": "object", "properties": FIELDS, "required": list(FIELDS)}}


class Translator(curator.LLM):  # type: ignore[misc]
    """One question a request, as Curator asks."""

    def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """The messages of a request."""
        return [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["user"]}]

    def parse(self, row: dict[str, Any], response: str) -> dict[str, str]:
        """The row that an answer makes."""
        return {"text": row["text"], "answer": json.loads(response)[0]["text"]}


def main() -> None:
    """Ask all, write the answers."""
    url, model, requests_per_minute, concurrent, questions, answers = sys.argv[1:]
    rows = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()]
    form = {"type": "json_schema", "json_schema": {"name": "answers", "schema": SCHEMA}}
    llm = Translator(
        model_name=f"gemini/{model}",
        backend="litellm",
        generation_params={"temperature": 0.0, "response_format": form},
        backend_params={
            "base_url": f"{url}/v1beta",
            "max_requests_per_minute": int(requests_per_minute),
            "max_tokens_per_minute": 10**9,
            "max_concurrent_requests": int(concurrent),
        },
    )
    made = llm(rows)
    found = [json.dumps(row, ensure_ascii=False) for row in getattr(made, "dataset", made)]
    Path(answers).write_text("\n".join(found), encoding="utf-8")


if __name__ == "__main__":
    main()
