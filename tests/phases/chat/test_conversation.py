"""A chat as one run: what it feeds, what it records, and what it takes back."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from checkpoints import random_tensors, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import ModelConfig
from phases import Generator, Message, PhaseError, RequestError, SamplingParams, SnapshotError
from phases.chat.conversation import Conversation, read_messages
from phases.chat.machine import Turn, chat_ids, common, continued, machine, plain_text
from phases.replay import replay
from statemachine import Journal, Status
from statemachine.record.records import PauseRecord

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, seed=1)


@pytest.fixture(scope="module")
def demo() -> Iterator[Generator]:
    with Generator.from_pretrained(machine=machine, max_batch=2, self_check=False, engine="numpy") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def plain() -> Iterator[Generator]:
    """The same model by the built-in machine: what answers whole messages afresh."""
    with Generator.from_pretrained(max_batch=1, self_check=False, engine="numpy") as loaded:
        yield loaded


@pytest.fixture
def chat(demo: Generator, tmp_path: Path) -> Iterator[Conversation]:
    with Conversation(demo, GREEDY, journal=tmp_path / "chat.jsonl") as made:
        yield made


def say(chat: Conversation, text: str) -> str:
    return "".join(chat.say(text))


def really_fed(chat: Conversation) -> int:
    """The tokens that the engine was given by the last prefill."""
    [slot] = chat.run.context.slots
    return int(chat.generator.engine.buffers.input_lengths[slot])


def test_a_turn_feeds_what_is_new_in_it(chat: Conversation) -> None:
    new = "Count from 3 to 9."
    assert say(chat, "What is 7 plus 5?") == "7 + 5 = 12."
    first = chat.run.context.cached[0]
    assert (chat.fed[0], really_fed(chat)) == (chat.fed[0], len(chat.run.context.prompt_ids[0]))
    say(chat, new)
    whole = chat_ids(chat.generator.tokenizer, chat.messages[:-1])
    assert chat.run.context.prompt_ids == [whole]
    assert chat.fed[:2] == (len(whole) - first, first)
    assert really_fed(chat) == len(whole) - first
    tokenizer = chat.generator.tokenizer
    turn = len(tokenizer.encode_continuation(new))
    assert really_fed(chat) - turn == 4  # the end of the answer, who speaks, the end of that, and who answers


def test_answers_are_those_of_the_whole_chat_fed_afresh(chat: Conversation, plain: Generator) -> None:
    for text in ("What is 7 plus 5?", "Tell me a story about a fox.", "What is 2 plus 2?"):
        asked = [*chat.messages, Message("user", text)]
        assert say(chat, text) == plain.generate(asked, GREEDY).text


def test_the_chat_is_one_record_that_verifies(chat: Conversation, demo: Generator, tmp_path: Path) -> None:
    chat.params = SamplingParams(temperature=1.2, max_new_tokens=9)
    say(chat, "Hello")
    first = chat.messages
    "".join(chat.retry())
    chat.set_system("Be kind.")
    "".join(chat.edit("What is 1 plus 1?"))
    with pytest.raises(RequestError):
        say(chat, "word " * 3000)
    chat.back()
    assert [message.role for message in chat.messages] == ["system"]
    say(chat, "And now?")
    chat.close()
    assert chat.run.status is Status.DONE
    path = tmp_path / "chat.jsonl"
    found = replay(path, generator=demo)
    found.run.close()
    assert found.verdict is not None
    assert (found.verdict.divergence, found.verdict.ended) == (None, "done")
    played = replay(path, "play", machine=machine)
    assert played.run.status is Status.DONE
    asked = [step.outcome.messages for step in played.run.steps() if step.phase == "listen"]
    assert len(asked) == 6  # two answers to the first, one edited, one too long, one more, and the end
    assert asked[0] == asked[1] == first[:1]


def test_another_answer_is_another(chat: Conversation) -> None:
    for params in (SamplingParams(temperature=1.5, max_new_tokens=20), SamplingParams(temperature=1.5, seed=3)):
        chat.params = params
        answers = {say(chat, "Tell me a story about a fox."), *("".join(chat.retry()) for _ in range(4))}
        assert len(answers) > 1
        assert len(chat.messages) == 2
        assert chat.fed[0] == 1  # all but the last token was there
        chat.back()


def test_turns_are_taken_back(chat: Conversation) -> None:
    for text in ("one", "two", "three"):
        say(chat, text)
    assert chat.back() == "three"
    assert [message.text for message in chat.messages[::2]] == ["one", "two"]
    assert chat.back(2) == "one"
    assert chat.messages == ()
    for words in (chat.back, chat.retry, lambda: chat.edit("x")):
        with pytest.raises(RequestError, match="nothing was said yet"):
            "".join(words() or "")
    say(chat, "one")
    with pytest.raises(RequestError):
        chat.back(2)
    assert len(chat.messages) == 2  # all or nothing


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(chat: Conversation, plain: Generator) -> None:
    chat.params = SamplingParams(temperature=0, max_new_tokens=60)
    whole = plain.generate("Tell me a story about a fox.", chat.params).text
    pieces = chat.say("Tell me a story about a fox.")
    heard = next(pieces) + next(pieces)
    chat.stop()
    heard += "".join(pieces)
    assert whole.startswith(heard)
    assert len(heard) < len(whole)
    assert (chat.cut, chat.messages[-1]) == ("stopped", Message("assistant", heard))
    chat.stop()  # there is nothing to stop any more
    asked = [*chat.messages, Message("user", "What is 7 plus 5?")]
    assert say(chat, "What is 7 plus 5?") == plain.generate(asked, chat.params).text
    assert chat.cut == ""


def test_a_stop_that_comes_too_late_stops_nothing_later(chat: Conversation) -> None:
    pieces = chat.say("What is 7 plus 5?")
    last = ""
    for piece in pieces:
        last = piece or last
        if chat.run.context.finish_reasons[0]:
            chat.stop()
    assert last
    assert len(say(chat, "Count from 3 to 9.")) > 3
    assert chat.cut != "stopped"


def test_an_answer_that_nobody_hears_is_taken_back(chat: Conversation, plain: Generator) -> None:
    say(chat, "What is 7 plus 5?")
    before, steps = chat.messages, chat.run.step_count
    pieces = chat.say("Tell me a story about a fox.")
    next(pieces)
    pieces.close()
    assert (chat.messages, chat.run.step_count, chat.run.status) == (before, steps, Status.WAITING)
    asked = [*before, Message("user", "What is 2 plus 2?")]
    assert say(chat, "What is 2 plus 2?") == plain.generate(asked, GREEDY).text


def test_what_is_too_long_is_refused_and_the_chat_goes_on(chat: Conversation) -> None:
    say(chat, "What is 7 plus 5?")
    before = chat.messages
    with pytest.raises(RequestError, match=r"the capacity is 1024 tokens, .*; /back takes a turn back"):
        say(chat, "word " * 3000)
    assert chat.messages == before
    say(chat, "What is 2 plus 2?")
    assert chat.fed[1] > 20  # the cache is still there


def test_a_phase_that_fails_takes_back_what_was_said(tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path / "model")
    tensors = random_tensors(ModelConfig.from_folder(folder))
    with Generator.from_pretrained(folder, machine=machine, max_batch=1) as whole:
        [bad] = whole.tokenizer.encode_continuation("!")
    tensors["model.embed_tokens.weight"][bad] = np.nan
    write_safetensors(folder / "model.safetensors", tensors)
    with Generator.from_pretrained(folder, machine=machine, max_batch=1, engine="numpy") as generator:
        with Conversation(generator, SamplingParams(max_new_tokens=3, seed=4, temperature=0)) as chat:
            first = say(chat, "the fox")
            with pytest.raises(PhaseError):
                say(chat, "!")
            assert len(chat.messages) == 2
            assert "".join(chat.edit("the fox")) == first
        assert generator.free_rows == 1


def test_the_past_of_a_chat_can_be_visited(chat: Conversation) -> None:
    """A later turn may have written over the cache of an earlier one, as with another system message."""
    say(chat, "What is 7 plus 5?")
    steps = chat.run.step_count
    place = steps - 3
    ids = list(chat.run.context.output_ids[0])
    chat.set_system("You are a very old and very slow robot who counts all day long.")
    say(chat, "Tell me a story about a fox.")
    chat.run.goto(place)
    chat.run.until(chat.run.machine.phases["listen"])
    assert chat.run.context.output_ids == [ids]
    chat.run.goto(8)  # amid the first answer, whose logits are long gone
    chat.run.until(chat.run.machine.phases["detokenize"])
    assert chat.run.context.output_ids == [ids]


def test_a_chat_is_saved_whole_and_goes_on_elsewhere(demo: Generator, tmp_path: Path) -> None:
    with Conversation(demo, GREEDY) as chat:
        say(chat, "What is 7 plus 5?")
        chat.run.snapshot(tmp_path / "chat.snap")
        asked = (*chat.messages, Message("user", "What is 2 plus 2?"))
        expected = say(chat, "What is 2 plus 2?")
    run = demo.resume(tmp_path / "chat.snap")
    run.answer(Turn(asked, GREEDY.over(demo.defaults)))
    assert "".join(demo.pieces(run)) == expected
    assert run.context.reused[0] > 20
    run.close()


# --- files --------------------------------------------------------------------------------------------------------


def test_what_was_said_is_saved_and_loaded(chat: Conversation, tmp_path: Path) -> None:
    say(chat, "What is 7 plus 5?")
    chat.set_system("Be käind \x1b.")
    path = tmp_path / "saved.json"
    chat.save(path)
    assert json.loads(path.read_text())[1] == {"role": "user", "content": "What is 7 plus 5?"}
    said = chat.messages
    chat.back()
    chat.save(path)  # its own file may be replaced
    assert len(json.loads(path.read_text())) == 1
    chat.messages = said
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(RequestError, match="exists already"):
        chat.save(other)
    assert other.read_text() == "[]"
    chat.save(path)
    chat.load(other)
    assert chat.messages == ()
    chat.load(path)
    assert chat.messages == said
    with pytest.raises(OSError, match="No such file"):
        chat.save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"{", "is not JSON"), (b"{}", "holds no chat"), (b'["x"]', "a message is"), (b"\xff", "is not JSON"),
     (b"[" * 100_000, "is not JSON"), (b'[{"role": "user", "content": 5}]', "content is"),
     (b'[{"role": "user", "content": [{"type": "image", "image": "x"}]}]', "holds an image")],
)  # fmt: skip
def test_a_file_that_holds_no_chat_changes_nothing(chat: Conversation, tmp_path: Path, data: bytes, words: str) -> None:
    chat.messages = said = (Message("user", "x"),)
    path = tmp_path / "saved.json"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=words):
        chat.load(path)
    assert chat.messages == said


def test_a_chat_is_read_from_a_file_alone(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        read_messages(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="is no file"):
        read_messages(tmp_path)


# --- tokens -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=st.text(max_size=30), data=st.data())
def test_what_the_model_drew_is_not_spelled_anew(demo: Generator, text: str, data: st.DataObject) -> None:
    """Any text can come as other tokens than the tokenizer would take, down to single bytes."""
    tokenizer = demo.tokenizer
    before = chat_ids(tokenizer, (Message("user", "Hello"),))
    drawn = tuple(token for character in text for token in tokenizer.encode_continuation(character))
    held = (*before, *drawn)
    answer = tokenizer.decode(drawn)
    asked = (Message("user", "Hello"), Message("assistant", answer), Message("user", "And?"))
    canonical = chat_ids(tokenizer, asked)
    found = continued(tokenizer, held, canonical)
    assert tokenizer.decode_all(found) == tokenizer.decode_all(canonical)
    if answer == answer.strip() != "":  # the template of this model trims
        assert found[: len(held)] == held


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_what_two_have_in_common_is_the_longest_such(one: list[int], other: list[int]) -> None:
    length = common(tuple(one), tuple(other))
    assert one[:length] == other[:length]
    assert one[: length + 1] != other[: length + 1] or length in (len(one), len(other))


def test_a_model_without_a_template_is_given_plain_lines(tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path / "model", template=None)
    messages = (
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "Ho"),
        Message("user", "So?"),
    )
    assert plain_text(messages) == "Be kind.\nUser: Hi\nAssistant: Ho\nUser: So?\nAssistant:"
    with (
        Generator.from_pretrained(folder, machine=machine, max_batch=1) as generator,
        Conversation(generator, SamplingParams(max_new_tokens=3, temperature=0)) as chat,
    ):
        say(chat, "Hi")
        say(chat, "So?")
        assert chat.fed[1] > 0


def test_a_chat_needs_its_machine(plain: Generator) -> None:
    with pytest.raises(ValueError, match=r"phases\.chat\.machine\.machine"):
        Conversation(plain, GREEDY)


def test_a_record_of_a_chat_is_of_no_other_machine(demo: Generator, plain: Generator, tmp_path: Path) -> None:
    with Conversation(demo, GREEDY) as chat:
        say(chat, "Hello")
        chat.run.snapshot(tmp_path / "chat.snap")
    with pytest.raises(SnapshotError):
        plain.resume(tmp_path / "chat.snap")
    assert plain.free_rows == 1


def test_a_chat_that_is_killed_is_recovered(demo: Generator, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    chat = Conversation(demo, GREEDY, journal=path)
    say(chat, "What is 7 plus 5?")
    copy = tmp_path / "copy.jsonl"
    shutil.copy(path, copy)  # what a process that is killed now would leave
    last = Journal.open(copy).last()
    assert isinstance(last, PauseRecord)
    assert last.p == "listen"
    asked = (*chat.messages, Message("user", "What is 2 plus 2?"))
    expected = say(chat, "What is 2 plus 2?")
    chat.close()
    run = demo.recover(copy)
    run.answer(Turn(asked, GREEDY.over(demo.defaults)))
    assert "".join(demo.pieces(run)) == expected
    run.close()
