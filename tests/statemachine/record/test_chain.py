"""Damage, tampering and records that were cut are told from divergence, and none of them is verified."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statemachine_recorded import Walk, forge, fresh, lines, machine, record

from statemachine import Journal, JournalError, JournalWriter, Run, Verdict, verify

Records = list[dict[str, Any]]

REQUEST = {"seed": 0, "limit": 12}


def judged(path: Path) -> Verdict | JournalError:
    """What a replay says of a journal: a verdict, or that it cannot be trusted."""
    try:
        return verify(Journal.open(path), Run(machine, Walk(limit=12), request=REQUEST))
    except JournalError as error:
        return error


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    run = Run(
        machine, Walk(limit=12), request=REQUEST, journal=JournalWriter(path), keep=True, digest_every=2
    )  # fmt: skip
    run.until(lambda run: run.step_count == 5)
    run.edit("bonus", amount=3)
    run.back(2)
    run.resume()
    run.close()
    assert judged(path).verified  # type: ignore[union-attr]
    return path


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_byte_can_change_without_being_found(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = whole.with_name("flipped.jsonl")
    path.write_bytes(content)
    verdict = judged(path)
    assert isinstance(verdict, JournalError) or not verdict.complete  # a line that lost its end was never finished
    if isinstance(verdict, Verdict):
        assert place == len(content) - 1


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_line_can_be_moved_taken_doubled_or_put_in(whole: Path, data: st.DataObject) -> None:
    body = whole.read_bytes().splitlines(keepends=True)
    place = data.draw(st.integers(0, len(body) - 2))
    other = data.draw(st.integers(0, len(body) - 1).filter(lambda n: body[n] != body[place]))
    kind = data.draw(st.sampled_from(["swap", "take", "double", "put in"]))
    if kind == "swap":
        body[place], body[other] = body[other], body[place]
    elif kind == "take":
        del body[place]
    elif kind == "double":
        body.insert(place, body[place])
    else:
        body.insert(place + 1, body[other])
    path = whole.with_name("moved.jsonl")
    path.write_bytes(b"".join(body))
    assert isinstance(judged(path), JournalError)


def test_two_journals_spliced_are_found(whole: Path, tmp_path: Path) -> None:
    record(tmp_path / "b.jsonl", seed=1, limit=12)
    mine, other = (path.read_bytes().splitlines(keepends=True) for path in (whole, tmp_path / "b.jsonl"))
    for place in range(1, min(len(mine), len(other))):
        (tmp_path / "c.jsonl").write_bytes(b"".join(mine[:place] + other[place:]))
        assert isinstance(judged(tmp_path / "c.jsonl"), JournalError)


def test_a_file_cut_at_any_line_is_incomplete_and_says_where_it_ends(whole: Path, tmp_path: Path) -> None:
    body = whole.read_bytes().splitlines(keepends=True)
    for count in range(1, len(body)):
        (tmp_path / "cut.jsonl").write_bytes(b"".join(body[:count]))
        verdict = judged(tmp_path / "cut.jsonl")
        assert isinstance(verdict, Verdict)
        assert (verdict.verified, verdict.complete, verdict.divergence) == (False, False, None)
        assert verdict.ends_at == verdict.steps < count


def tokens_and_goto(records: Records) -> None:
    for line in records:
        if line["type"] == "s" and line["p"] == "draw":
            line["o"] = 4
    records.append({"type": "goto", "n": 0})


def cut(records: Records) -> None:
    del records[-3:]


def paused_at_its_end(records: Records) -> None:
    records[-1] = {"type": "pause", "n": records[-1]["n"]}


def end_that_is_a_pause(records: Records) -> None:
    records[-1]["status"] = "paused"


def doubled_end(records: Records) -> None:
    records.append(dict(records[-1]))


def end_in_the_middle(records: Records) -> None:
    del records[-4:-1]
    records[-1]["n"] = records[-2]["n"] + 1


def failed_instead(records: Records) -> None:
    records[-4:] = [{"type": "end", "n": records[-4]["n"], "status": "failed"}]


def interrupted_instead(records: Records) -> None:
    n, p = records[-4]["n"], records[-4]["p"]
    error = {"type": "error", "n": n, "p": p, "exception": "KeyboardInterrupt", "message": "", "outside": True}
    records[-4:] = [error, {"type": "end", "n": n, "status": "failed"}]


def failed_of_something(records: Records) -> None:
    n, p = records[-4]["n"], records[-4]["p"]
    error = {"type": "error", "n": n, "p": p, "exception": "ValueError", "message": "", "outside": False}
    records[-4:] = [error, {"type": "end", "n": n, "status": "failed"}]


def no_digests(records: Records) -> None:
    for line in records:
        line.pop("d", None)


def another_digest(records: Records) -> None:
    next(line for line in records if "d" in line)["d"] = [99]


def float_for_integer(records: Records) -> None:
    line = next(line for line in reversed(records) if line.get("p") == "draw")
    line["o"] = float(line["o"])


def another_order(records: Records) -> None:
    records[0]["origin"]["limit"] = 13


def no_origin(records: Records) -> None:
    del records[0]["origin"]


def emptied_origin(records: Records) -> None:
    records[0]["origin"] = {}


def other_guards(records: Records) -> None:
    line = next(line for line in reversed(records) if line.get("p") == "draw" and not line.get("g"))
    line["g"] = 1


FORGERIES = [
    tokens_and_goto, cut, paused_at_its_end, end_that_is_a_pause, doubled_end, end_in_the_middle, failed_instead,
    interrupted_instead, failed_of_something, no_digests, another_digest, float_for_integer, another_order, no_origin,
    emptied_origin, other_guards,
]  # fmt: skip


@pytest.mark.parametrize("change", FORGERIES, ids=lambda change: change.__name__)
def test_no_forgery_is_verified(whole: Path, tmp_path: Path, change: Callable[[Records], None]) -> None:
    records = lines(whole)
    change(records)
    plain = tmp_path / "plain.jsonl"  # checksums as they were
    plain.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in records))
    verdict = judged(plain)
    assert isinstance(verdict, JournalError) or not verdict.verified
    verdict = judged(forge(tmp_path / "forged.jsonl", records))  # checksums made good by somebody who knows how
    assert isinstance(verdict, JournalError) or not verdict.verified


def test_a_record_gone_back_from_is_incomplete_and_says_how_much_was_passed_over(whole: Path, tmp_path: Path) -> None:
    records = lines(whole)
    steps = sum(line["type"] == "s" for line in records)
    tokens_and_goto(records)
    verdict = judged(forge(tmp_path / "forged.jsonl", records))
    assert isinstance(verdict, Verdict)
    assert (verdict.complete, verdict.steps, verdict.passed_over) == (False, 0, steps)
    assert judged(whole).passed_over == 2  # type: ignore[union-attr]


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "model": (lambda header: header["environment"].update(model="another"), "model: another -> null"),
    "machine": (lambda header: header["machine"].update(name="run"), "machine name: run -> walk"),
    "library": (lambda header: header["environment"].update(transitions="0.1"), "transitions: 0.1 -> "),
    "fingerprint": (lambda header: header["machine"].update(fingerprint="0" * 64), "differs in its order or its fing"),
    "table": (lambda header: header["machine"]["transitions"].append(["note", "done", "odd"]), "transition gone: note"),
    "guards": (lambda header: header["machine"]["guards"].update(draw=["x", "y"]), "guard gone: x of draw"),
    "signals": (lambda header: header["machine"]["signals"].clear(), "signal new: stop to stopped"),
    "edits": (lambda header: header["machine"]["edits"].append("more"), "edit gone: more"),
    "opaque": (lambda header: header.update(opaque=["limit"]), "not recorded: what limit of the context began with"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_differs_is_told_though_every_step_agrees(whole: Path, tmp_path: Path, name: str) -> None:
    change, words = HEADERS[name]
    records = lines(whole)
    if name == "guards":  # what has no name in common cannot be compared
        for line in records:
            line.pop("g", None)
    change(records[0])
    verdict = judged(forge(tmp_path / "forged.jsonl", records))
    assert isinstance(verdict, Verdict)
    assert verdict.verified
    assert any(words in line for line in verdict.differences), verdict.differences


def test_a_record_that_begins_later_says_that_its_beginning_was_believed(whole: Path, tmp_path: Path) -> None:
    records = lines(whole)
    records[0]["first"] = 5
    for line in records[1:]:
        line["n"] += 5
    verdict = judged(forge(tmp_path / "forged.jsonl", records))
    assert isinstance(verdict, Verdict)
    assert verdict.differences == ("the record begins at step 5: the state there was taken from it, and not compared",)


def test_another_version_of_the_machine_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record(path)
    verdict = verify(Journal.open(path), Run(replace(machine, version=2), Walk(), request={"seed": 0, "limit": 20}))
    assert verdict.verified
    assert "machine version: 1 -> 2" in verdict.differences
    assert verify(Journal.open(path), fresh(path)).differences == ()


def test_without_checksums_a_verdict_says_so(whole: Path, tmp_path: Path) -> None:
    records = lines(whole)
    records[0]["schema"] = 1
    for line in records:
        line.pop("c", None)
    path = tmp_path / "old.jsonl"
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in records))
    verdict = judged(path)
    assert isinstance(verdict, Verdict)
    assert "the record has no checksums: schema 1 had none" in verdict.differences
    verdict = verify(Journal.open(whole, chained=False), fresh(whole))
    assert verdict.differences == ("the record's checksums were not compared",)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_in_the_middle_is_found_and_its_line_named(whole: Path, data: st.DataObject) -> None:
    body = whole.read_bytes().splitlines(keepends=True)
    steps = [number for number, line in enumerate(body) if b'"type":"s"' in line]
    number = data.draw(st.sampled_from(steps[:-1]))
    changes = itertools.cycle([(b'"type":"s"', b'"type":"zzz"'), (b'"type"', b'"x":1,"type"'), (b'"p":"', b'"p":"no_'),
                               (b'"e":', b'"e":9'), (b'"n"', b'\xff"')])  # fmt: skip
    old, new = next(itertools.islice(changes, data.draw(st.integers(0, 4)), None))
    body[number] = body[number].replace(old, new)
    path = whole.with_name("damaged.jsonl")
    path.write_bytes(b"".join(body))
    with pytest.raises(JournalError, match=rf"damaged.jsonl, line {number + 1}: "):
        list(Journal.open(path).records())
