"""Tests of ray_pipeline.gemini.ledger: the same ones on a local folder and on an S3 server."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_pipeline import storage
from ray_pipeline.errors import StorageError
from ray_pipeline.gemini import ledger
from ray_pipeline.gemini.ledger import Answer, Ledger
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Gemini

ANSWERS = [
    Answer("k1", "rote Schuhe", None, "gemini-2.5-flash"),
    Answer("k2", None, "blocked: SAFETY", None),
    Answer("k3", '빨간 "신발"\n\u2028 \x85', None, "gemini-2.5-flash-002"),
]


def known(url: str) -> dict[str, Answer]:
    book = Ledger(url)
    return {answer.key: found for answer in ANSWERS if (found := book.get(answer.key)) is not None}


def test_answers_are_kept(place: str) -> None:
    book = Ledger(place)
    assert book.get("k1") is None
    book.append(ANSWERS[:2])
    book.append(ANSWERS[2:])
    assert book.get("k1") == ANSWERS[0], "known at once"
    book.flush()
    assert known(place) == {answer.key: answer for answer in ANSWERS}


def test_flushing_nothing_writes_nothing(place: str) -> None:
    book = Ledger(place)
    book.append([])
    book.flush()
    assert storage.list_files(place) == []


def test_another_writer_is_found_and_not_disturbed(place: str) -> None:
    first, second = Ledger(place), Ledger(place)
    for answer, book in zip(ANSWERS, (first, second, first), strict=True):
        book.append([answer])
        book.flush()
    assert len(storage.list_files(place)) == (3 if storage.is_remote(place) else 2), "no writer touches another's file"
    assert known(place) == {answer.key: answer for answer in ANSWERS}


def test_a_line_cut_short_by_a_kill_is_passed_over(place: str) -> None:
    book = Ledger(place)
    book.append(ANSWERS)
    book.flush()
    (url,) = storage.list_files(place)
    data = storage.read_bytes(url)
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 3
    for size in range(len(data) + 1):
        storage.write_bytes(url, data[:size])
        whole = sum(end <= size for end in ends)
        assert known(place) == {answer.key: answer for answer in ANSWERS[:whole]}, f"cut to {size} bytes"
        if storage.is_remote(place) and size == 3:
            break  # objects are there whole or not at all; one look at it is enough


def test_a_line_cut_short_in_the_middle_is_passed_over(place: str) -> None:
    """As a full disk leaves it: half a line, then, once there is space again, whole ones."""
    book = Ledger(place)
    book.append(ANSWERS)
    book.flush()
    (url,) = storage.list_files(place)
    lines = storage.read_bytes(url).splitlines(keepends=True)
    storage.write_bytes(url, lines[0] + lines[1][:20] + lines[1] + lines[2] + b"[1]\nnull\n{}\n\xff\n")
    assert known(place) == {"k1": ANSWERS[0], "k3": ANSWERS[2]}


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from ray_pipeline.gemini.ledger import Answer, Ledger\n"
        "book = Ledger(sys.argv[1]); book.append([Answer('k1', 'rote Schuhe', None, 'gemini-2.5-flash')])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert known(str(tmp_path)) == {"k1": ANSWERS[0]}


def test_on_s3_answers_are_written_every_two_seconds(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{s3_bucket}/ledger-{os.getpid()}"
    book = Ledger(url)
    book.append(ANSWERS[:1])
    assert known(url) == {}
    monkeypatch.setattr(ledger, "REMOTE_FLUSH_SECONDS", 0)
    book.append(ANSWERS[1:2])
    assert known(url) == {"k1": ANSWERS[0], "k2": ANSWERS[1]}


def test_answers_that_come_while_others_are_written_are_kept(place: str) -> None:
    book = Ledger(place)
    answers = [Answer(f"key {number}", "x") for number in range(400)]
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            book.flush()

    with ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(flush)
        for answer in answers:
            book.append([answer])
            time.sleep(0.0005)
        ended.set()
        flushing.result()
    book.flush()
    again = Ledger(place)
    assert [again.get(answer.key) for answer in answers] == answers
    lines = [line for url in storage.list_files(place) for line in storage.read_bytes(url).splitlines()]
    assert len(lines) == len(answers), "each is written once"


def test_a_ledger_that_cannot_be_written_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    book = Ledger(str(tmp_path / "file" / "ledger"))
    with pytest.raises(StorageError, match="a part of the path is a file"):
        book.append(ANSWERS)
    (tmp_path / "file").unlink()
    book.flush()
    assert known(str(tmp_path / "file" / "ledger")) == {answer.key: answer for answer in ANSWERS}


def test_the_folder_holds_what_changes_an_answer() -> None:
    base = ledger.folder("/w", Gemini(), "translate")
    assert base == ledger.folder("/w", Gemini(items_per_request=3, concurrency=1, requests_per_minute=1), "translate")
    assert base == ledger.folder("/w", Gemini(base_url="http://elsewhere", max_usd=1), "translate")
    others = [
        ledger.folder("/w", Gemini(model="gemini-3"), "translate"),
        ledger.folder("/w", Gemini(temperature=0.5), "translate"),
        ledger.folder("/w", Gemini(thinking_budget=None), "translate"),
        ledger.folder("/w", Gemini(), "detect_language"),
        ledger.folder("/w", Gemini(), "detect_language", ["en", "de"]),
        ledger.folder("/w", Gemini(), "detect_language", ["en"]),
    ]
    assert len({base, *others}) == len(others) + 1
    assert all(other.startswith("/w/ledger/") for other in others)


def test_a_key_does_not_depend_on_who_travels_along() -> None:
    items = [Item(f"text {i}", "en", "de") for i in range(4)]
    together, alone = [item.key for item in items], [Item(item.text, item.source, item.target).key for item in items]
    assert together == alone
    assert len(set(together)) == 4
