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
from ray_pipeline.errors import CorruptArtifactError, StorageError
from ray_pipeline.gemini import ledger
from ray_pipeline.gemini.ledger import Answer, Ledger
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Gemini

KEYS = ["0000aaaa", "7fffbbbb", "ffffcccc"]
ANSWERS = [
    Answer(KEYS[0], "rote Schuhe", None, "gemini-2.5-flash"),
    Answer(KEYS[1], None, "blocked: SAFETY", None),
    Answer(KEYS[2], '빨간 "신발"\n\u2028 \x85', None, "gemini-2.5-flash-002"),
]


def known(url: str) -> dict[str, Answer]:
    book = Ledger(url, KEYS)
    return {answer.key: found for answer in ANSWERS if (found := book.get(answer.key)) is not None}


def test_answers_are_kept(place: str) -> None:
    book = Ledger(place, KEYS)
    assert book.get(KEYS[0]) is None
    book.append(ANSWERS[:2])
    book.append(ANSWERS[2:])
    assert book.get(KEYS[0]) == ANSWERS[0], "known at once"
    book.flush()
    assert known(place) == {answer.key: answer for answer in ANSWERS}


def test_flushing_nothing_writes_nothing(place: str) -> None:
    book = Ledger(place, KEYS)
    book.append([])
    book.flush()
    assert storage.list_files(place) == []


def test_another_writer_is_found_and_not_disturbed(place: str) -> None:
    first, second = Ledger(place, KEYS), Ledger(place, KEYS)
    for answer, book in zip(ANSWERS, (first, second, first), strict=True):
        book.append([answer])
        book.flush()
    assert len(storage.list_files(place)) == (3 if storage.is_remote(place) else 2), "no writer touches another's file"
    assert known(place) == {answer.key: answer for answer in ANSWERS}


def test_a_line_cut_short_by_a_kill_is_passed_over(place: str) -> None:
    book = Ledger(place, KEYS)
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
    book = Ledger(place, KEYS)
    book.append(ANSWERS)
    book.flush()
    (url,) = storage.list_files(place)
    lines = storage.read_bytes(url).splitlines(keepends=True)
    storage.write_bytes(url, lines[0] + lines[1][:20] + lines[1] + lines[2] + b"[1]\nnull\n{}\n\xff\n")
    assert known(place) == {KEYS[0]: ANSWERS[0], KEYS[2]: ANSWERS[2]}


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from ray_pipeline.gemini.ledger import Answer, Ledger\n"
        "book = Ledger(sys.argv[1], ['0000aaaa'])\n"
        "book.append([Answer('0000aaaa', 'rote Schuhe', None, 'gemini-2.5-flash')])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert known(str(tmp_path)) == {KEYS[0]: ANSWERS[0]}


def test_on_s3_answers_are_written_at_each_flush(s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/ledger-{os.getpid()}"
    book = Ledger(url, KEYS)
    book.append(ANSWERS[:1])
    assert known(url) == {}
    book.flush()
    book.append(ANSWERS[1:2])
    book.flush()
    assert known(url) == {KEYS[0]: ANSWERS[0], KEYS[1]: ANSWERS[1]}


def test_a_closed_log_is_one_file_with_the_same_answers(place: str) -> None:
    book = Ledger(place, KEYS)
    for answer in ANSWERS:
        book.append([answer])
        book.flush()
    book.waste("gemini-2.5-flash", 0.5)
    book.close()
    [url] = storage.list_files(place)
    assert url.endswith(".parquet")
    assert known(place) == {answer.key: answer for answer in ANSWERS}
    Ledger(place, KEYS).close()
    assert storage.list_files(place) == [url], "who has nothing to add writes nothing"


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Memory and time of a worker are those of its own items, however long the ledger is."""
    for low in range(0, 0x10000, 0x1000):
        keys = [f"{low + i:04x}{'0' * 12}" for i in range(0, 0x1000, 0x100)]
        book = Ledger(str(tmp_path), keys)
        book.append(Answer(key, "x") for key in keys)
        book.close()
    for file in tmp_path.glob("*.parquet"):
        if not file.name.startswith("3000"):
            file.write_bytes(b"not to be read")
    wanted = ["3100000000000000", "3e00000000000000", "3e01000000000000"]
    book = Ledger(str(tmp_path), wanted)
    assert [book.get(key) is not None for key in wanted] == [True, True, False]
    with pytest.raises(CorruptArtifactError, match="delete the file: its answers are asked and paid for again"):
        Ledger(str(tmp_path), ["4100000000000000"])


def test_spending_is_summed_once_per_answer(tmp_path: Path) -> None:
    folder = tmp_path / "ledger" / "translate" / "abc"
    for usd in (0.25, 0.5):
        book = Ledger(str(folder), KEYS)
        book.append([Answer(KEYS[0], "x", usd=usd)])
        book.waste(None, 1.0)
        if usd == 0.25:
            log = next(folder.glob("*.jsonl"))
            copy = (log, log.read_bytes())
            book.close()
    copy[0].write_bytes(copy[1])  # a kill between the last two steps of closing
    gemini = Gemini()
    assert ledger.spent(str(tmp_path), gemini) == 2.75
    assert ledger.spent(str(tmp_path / "none"), gemini) == 0.0
    sandbox = Gemini(sandbox=True)
    Ledger(ledger.folder(str(tmp_path), sandbox, "translate"), KEYS).append([Answer(KEYS[0], "x", usd=7.0)])
    assert ledger.spent(str(tmp_path), gemini) == 2.75, "what was never paid counts against no budget"
    assert ledger.spent(str(tmp_path), sandbox) == 7.0


def test_what_a_writer_ends_meanwhile_is_summed_all_the_same(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    book, read = Ledger(storage.join(place, "ledger", "translate", "abc"), KEYS), storage.read_bytes
    for answer in (Answer(KEYS[0], "x", usd=0.25), Answer(KEYS[1], "x", usd=0.5)):
        book.append([answer])
        book.flush()

    def ends(url: str) -> bytes:
        data = read(url)  # the first piece; on S3 there is another, which is gone when it is looked for
        book.close()
        return data if storage.is_remote(url) else read(url)

    monkeypatch.setattr(storage, "read_bytes", ends)
    assert ledger.spent(place, Gemini()) == 0.75


def test_files_in_a_bucket_are_read_many_at_once(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, read = f"s3://{s3_bucket}/ledger-at-once-{os.getpid()}", storage.read_bytes
    for answer in ANSWERS:
        book = Ledger(url, KEYS)
        book.append([answer])
        book.flush()
    all_three = threading.Barrier(len(ANSWERS), timeout=30)

    def together(file: str) -> bytes:
        all_three.wait()
        return read(file)

    monkeypatch.setattr(storage, "read_bytes", together)
    assert known(url) == {answer.key: answer for answer in ANSWERS}


def test_answers_that_come_while_others_are_written_are_kept(place: str) -> None:
    book = Ledger(place, ["0000", "ffff"])
    answers = [Answer(f"{number:04x}", "x") for number in range(400)]
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
    again = Ledger(place, [answer.key for answer in answers])
    assert [again.get(answer.key) for answer in answers] == answers
    lines = [line for url in storage.list_files(place) for line in storage.read_bytes(url).splitlines()]
    assert len(lines) == len(answers), "each is written once"


def test_a_ledger_that_cannot_be_written_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    book = Ledger(str(tmp_path / "file" / "ledger"), KEYS)
    with pytest.raises(StorageError, match="a part of the path is a file"):
        book.append(ANSWERS)
    (tmp_path / "file").unlink()
    book.flush()
    assert known(str(tmp_path / "file" / "ledger")) == {answer.key: answer for answer in ANSWERS}


def test_after_a_write_that_was_cut_short_all_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, append = Ledger(str(tmp_path), KEYS), storage.append_bytes

    def full(path: str, data: bytes) -> None:
        append(path, data[:20])
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "append_bytes", full)
        with pytest.raises(StorageError, match="the disk is full"):
            book.append(ANSWERS[:1])
    book.append(ANSWERS[1:])
    assert known(str(tmp_path)) == {answer.key: answer for answer in ANSWERS}


def test_the_folder_holds_what_changes_an_answer() -> None:
    base = ledger.folder("/w", Gemini(), "translate")
    assert base == ledger.folder("/w", Gemini(items_per_request=3, concurrency=1, requests_per_minute=1), "translate")
    assert base == ledger.folder("/w", Gemini(base_url="http://elsewhere", max_usd=1), "translate")
    others = [
        ledger.folder("/w", Gemini(model="gemini-3"), "translate"),
        ledger.folder("/w", Gemini(temperature=0.5), "translate"),
        ledger.folder("/w", Gemini(model="gemini-2.5-flash"), "translate"),
        ledger.folder("/w", Gemini(model="gemini-2.5-flash", thinking_budget=-1), "translate"),
        ledger.folder("/w", Gemini(thinking_level="low"), "translate"),
        ledger.folder("/w", Gemini(), "detect_language"),
        ledger.folder("/w", Gemini(), "detect_language", ["en", "de"]),
        ledger.folder("/w", Gemini(), "detect_language", ["en"]),
    ]
    assert len({base, *others}) == len(others) + 1
    assert all(other.startswith("/w/ledger/") for other in others)
    local = ledger.folder("/w", Gemini(base_url="sandbox://"), "translate")
    assert local == ledger.folder("/w", Gemini(base_url="http://127.0.0.1:1", sandbox=True), "translate") != base


def test_a_key_does_not_depend_on_who_travels_along() -> None:
    items = [Item(f"text {i}", "en", "de") for i in range(4)]
    together, alone = [item.key for item in items], [Item(item.text, item.source, item.target).key for item in items]
    assert together == alone
    assert len(set(together)) == 4
