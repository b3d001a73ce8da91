"""Journals are read in constant memory, and say what is wrong with them."""

import tracemalloc
from pathlib import Path

import pytest
from killed_walk import killed
from statemachine_recorded import fresh, record

from statemachine import Journal, JournalError, verify


def test_killed_at_any_moment_it_loses_at_most_the_last_line(tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"{attempt}.jsonl"
        killed("start", path, after=20_000 + 3_333 * attempt)
        steps = sum(1 for _ in Journal.open(path).records())
        assert steps > 1000
        journal = Journal.open(path, repair=True)
        assert path.read_bytes().endswith(b"\n")
        assert Journal.open(path).torn == 0
        assert sum(1 for _ in journal.records()) == steps


def test_a_journal_cut_at_any_byte_opens_or_says_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record(path, limit=4)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    cut = tmp_path / "cut.jsonl"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        if length < head:
            with pytest.raises(JournalError, match=r"cut.jsonl is no journal"):
                Journal.open(cut)
            continue
        journal = Journal.open(cut)
        assert journal.torn == length - whole.rfind(b"\n", 0, length) - 1
        assert len(list(journal.records())) == whole[:length].count(b"\n") - 1
        verdict = verify(journal, fresh(cut))
        assert verdict.divergence is None
        assert verdict.verified is (length == len(whole))


def test_what_is_no_journal_or_too_new_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(JournalError, match="cannot be read: No such file"):
        Journal.open(path)
    for content in (b"", b"hello\n", b"{}\n", b"[1]\n", b'{"type":"s","n":0,"p":"x","e":0}\n', b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(JournalError, match="is no journal"):
            Journal.open(path)
    record(tmp_path / "b.jsonl")
    text = (tmp_path / "b.jsonl").read_text()
    path.write_text(text.replace('"schema":2', '"schema":3', 1))
    with pytest.raises(JournalError, match=r"has schema 3, but this version reads schema 1 to 2; upgrade phasewalk"):
        Journal.open(path)


def test_a_large_journal_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    record(tmp_path / "a.jsonl", limit=2)
    header = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)[0]
    with path.open("wb") as file:
        file.write(header)
        for start in range(0, 400_000, 1000):
            file.write(
                b"".join(
                    b'{"type":"s","n":%d,"p":"draw","e":1,"o":%d,"t":123456}\n' % (n, n)
                    for n in range(start, start + 1000)
                )
            )
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    count = sum(1 for _ in Journal.open(path).timeline())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400_000
    assert peak < 1_000_000
