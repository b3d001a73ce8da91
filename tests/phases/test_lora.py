"""Adapters in requests: each row has the one that it names, and a record is gone on with by the very same alone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters import random_adapter, write_adapter, write_merged
from checkpoints import write_checkpoint

from gpu import AdapterError, ModelConfig
from phases import GenerationRequest, Generator, Message, RequestError, RowRequest, SamplingParams
from phases.chat.conversation import Conversation
from phases.chat.machine import machine as chat_machine
from phases.generator import DEMO_MODEL
from phases.lora import bundled_adapters
from phases.replay import load_generator, replay
from statemachine import Journal, JournalError, SnapshotError

PROMPT = "Tell me a story about a fox."
PIRATE = re.compile(r"\b(be|ye|yer|me|mateys?)\b|\b(an|o)'|'em|\b(it|[Tt]here|who) were\b")
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)
MODEL = ModelConfig.from_folder(DEMO_MODEL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, random_adapter(MODEL, rank, seed))
        for name, rank, seed in (("one", 4, 1), ("two", 2, 2))
    }


@pytest.fixture(scope="module")
def generator(folders: dict[str, Path]) -> Iterator[Generator]:
    with Generator.from_pretrained(engine="numpy", adapters=folders, capacity=128) as loaded:
        yield loaded


def row(adapter: str | None, prompt: str = PROMPT) -> RowRequest:
    return RowRequest(prompt=prompt, params=GREEDY, lora_weights_name=adapter)


def ids(generator: Generator, *rows: RowRequest) -> list[list[int]]:
    return generator.generate(GenerationRequest(rows)).output_ids


def test_rows_of_one_request_have_the_adapters_that_they_name(
    generator: Generator, folders: dict[str, Path], tmp_path: Path
) -> None:
    [plain] = ids(generator, row(None))
    expected = [ids(generator, row(name))[0] for name in ("one", "two")]
    # The prompts are equal, and would be computed once if it were not for the adapters.
    assert ids(generator, row("one"), row(None), row("two"), row(""), row("one")) == [
        expected[0], plain, expected[1], plain, expected[0],
    ]  # fmt: skip
    with Generator.from_pretrained(engine="numpy", capacity=128) as without:
        assert ids(without, row(None)) == [plain]
    for found, name, rank, seed in ((expected[0], "one", 4, 1), (expected[1], "two", 2, 2)):
        merged = write_merged(DEMO_MODEL, tmp_path / name, random_adapter(MODEL, rank, seed))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(DEMO_MODEL / file, merged)
        with Generator.from_pretrained(merged, "numpy", capacity=128) as of_merged:
            assert ids(of_merged, row(None)) == [found]


def test_a_row_that_was_another_runs_has_its_own_adapter(generator: Generator) -> None:
    [plain] = ids(generator, row(None))
    score = generator.score(PROMPT, "Once").logprob
    for _ in range(generator.free_rows):
        ids(generator, row("one"))
    assert ids(generator, row(None)) == [plain]
    for _ in range(generator.free_rows):
        ids(generator, row("one"))
    assert generator.score(PROMPT, "Once").logprob == score
    assert generator.score(row("one"), "Once").logprob != score


def test_use_lora_is_what_rows_have_that_name_none(folders: dict[str, Path], generator: Generator) -> None:
    [one], [plain] = ids(generator, row("one")), ids(generator, row(""))
    with Generator.from_pretrained(engine="numpy", adapters=folders, use_lora="one", capacity=128) as using:
        assert ids(using, row(None), row("")) == [one, plain]
    with pytest.raises(RequestError, match="there is no adapter 'three' to use; there are one, two"):
        Generator.from_pretrained(engine="numpy", adapters=folders, use_lora="three")


def test_what_is_no_adapter_here_is_refused_before_anything_runs(
    generator: Generator, folders: dict[str, Path]
) -> None:
    free = generator.free_rows
    with pytest.raises(RequestError, match="there is no adapter 'three'; there are 'one', 'two'"):
        generator.start(GenerationRequest((row("three"),)))
    another = RowRequest(prompt=PROMPT, lora_weights_name="one", lora_fingerprint="0" * 32)
    with pytest.raises(RequestError, match="the adapter 'one' is another one than it was"):
        generator.generate(another)
    with pytest.raises(RequestError, match="lora_weights_name is a string, not 3"):
        RowRequest(prompt=PROMPT, lora_weights_name=3)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="there is an adapter 'one' already"):
        generator.load_adapter("one", folders["one"])
    with pytest.raises(ValueError, match="room for 2 adapters, and as many are loaded"):
        generator.load_adapter("three", folders["two"])
    with pytest.raises(RequestError, match="no adapter 'nobody' comes with phasewalk, only pirate"):
        generator.load_adapter("nobody")
    with pytest.raises(RequestError, match="an adapter's name is a printable word"):
        generator.load_adapter("a\nb", folders["one"])
    assert generator.free_rows == free
    with Generator.from_pretrained(engine="numpy") as without, pytest.raises(RequestError, match="none is loaded"):
        without.generate(row("one"))


def test_adapters_are_loaded_later_where_there_is_room(generator: Generator, folders: dict[str, Path]) -> None:
    expected = ids(generator, row("one"), row("two"))
    with Generator.from_pretrained(engine="numpy", capacity=128, max_adapters=2, max_lora_rank=3) as later:
        with pytest.raises(AdapterError, match="rank 4, at most 3 was asked for: load with max_lora_rank=4"):
            later.load_adapter("one", folders["one"])
        later.load_adapter("two", folders["two"])
        assert ids(later, row("two")) == expected[1:]
        assert later.environment()["lora"] == {"two": str(folders["two"])}


def test_an_adapter_of_another_model_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    another = ModelConfig.from_folder(write_checkpoint(tmp_path / "another", num_hidden_layers=MODEL.layers))
    folder = write_adapter(tmp_path / "other", random_adapter(another, 2))
    with pytest.raises(AdapterError, match="is it an adapter of another model"):
        Generator.from_pretrained(engine="numpy", adapters={"other": folder})


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The adapters in folders that a test may change."""
    return {name: Path(shutil.copytree(folder, tmp_path / f"of {name}")) for name, folder in folders.items()}


def recorded(adapters: dict[str, Path], path: Path) -> tuple[Path, Path, list[list[int]]]:
    """The journal of a whole run, a snapshot of its middle, and what it came to."""
    journal, snapshot = path / "run.jsonl", path / "run.snap"
    with Generator.from_pretrained(engine="numpy", adapters=adapters, capacity=128) as loaded:
        request = GenerationRequest((row("one"), row("two"), row(None)))
        with loaded.start(request, journal=journal, keep=True) as run:
            for _ in zip(range(14), run, strict=False):
                pass
            run.snapshot(snapshot)
            run.resume()
            return journal, snapshot, loaded.result(run).output_ids


def test_records_name_adapters_and_are_gone_on_with(moved: dict[str, Path], tmp_path: Path) -> None:
    journal, snapshot, expected = recorded(moved, tmp_path)
    assert replay(journal).divergence is None
    opened = Journal.open(journal)
    with load_generator(opened) as loaded:
        rows = opened.header.request["requests"]
        fingerprints = [loaded.engine.adapters[name].fingerprint for name in ("one", "two")]
        assert [each["lora_weights_name"] for each in rows] == ["one", "two", ""]
        assert [each["lora_fingerprint"] for each in rows] == [*fingerprints, None]
        verdict = replay(journal, generator=loaded).verdict
        assert verdict is not None
        assert verdict.complete
        assert not verdict.differences
        with loaded.resume(snapshot) as run:
            run.resume()
            assert loaded.result(run).output_ids == expected
        fork = replay(journal, "fork", generator=loaded, at=14)
        fork.run.resume()
        assert loaded.result(fork.run).output_ids == expected


def test_a_run_that_was_saved_without_its_cache_computes_it_with_its_adapters(
    moved: dict[str, Path], tmp_path: Path
) -> None:
    with Generator.from_pretrained(engine="numpy", adapters=moved, capacity=128) as loaded:
        expected = ids(loaded, row("one"), row(None))
        with loaded.start(GenerationRequest((row("one"), row(None)))) as run:
            for _ in zip(range(9), run, strict=False):
                pass
            run.snapshot(tmp_path / "run.snap", kv="recompute")
        for _ in range(loaded.free_rows):  # another adapter stays behind in every row
            ids(loaded, row("two"))
        with loaded.resume(tmp_path / "run.snap") as run:
            run.resume()
            assert loaded.result(run).output_ids == expected


def test_another_adapter_of_the_same_name_is_refused(moved: dict[str, Path], tmp_path: Path) -> None:
    journal, snapshot, _ = recorded(moved, tmp_path)
    swapped = {"one": moved["two"], "two": moved["one"]}
    with Generator.from_pretrained(engine="numpy", adapters=swapped, capacity=128) as other:
        with pytest.raises(SnapshotError, match="with an adapter: the adapter 'one' is another one than it was"):
            other.resume(snapshot)
        with pytest.raises(JournalError, match="with an adapter: the adapter 'one' is another one than it was"):
            replay(journal, generator=other)
        with pytest.raises(JournalError, match="the adapter 'one' is another one than it was"):
            other.recover(journal)
        assert other.free_rows == 8
    with (
        Generator.from_pretrained(engine="numpy", capacity=128) as without,
        pytest.raises(SnapshotError, match="there is no adapter 'one'; none is loaded"),
    ):
        without.resume(snapshot)
    with pytest.raises(JournalError, match="the adapter 'one' is another one than it was"):
        load_generator(Journal.open(journal), adapters=swapped)
    shutil.rmtree(moved["two"])
    with pytest.raises(
        JournalError, match="adapter 'two', which is in no folder here: say where it is, with --lora two="
    ):
        replay(journal)
    assert replay(journal, "play").run.context.output_ids, "to play it, none is needed"


def test_a_run_goes_back_and_its_fork_goes_on_with_its_adapter(generator: Generator) -> None:
    [expected] = ids(generator, row("one"))
    with generator.start(row("one"), keep=True) as run:
        run.start()
        run.back(9)
        with run.fork() as fork:
            fork.resume()
            assert generator.result(fork).output_ids == [expected]


def test_a_chat_has_its_adapter_in_every_turn(folders: dict[str, Path], tmp_path: Path) -> None:
    journal = tmp_path / "chat.jsonl"
    with Generator.from_pretrained(
        engine="numpy", adapters=folders, use_lora="one", machine=chat_machine, capacity=256
    ) as chatting:
        with Conversation(chatting, GREEDY, journal=journal) as chat:
            said = ["".join(chat.say(text)) for text in ("Hello", "And now?")]
            assert chat.fed[1] > 0, "the cache is kept"
            messages = chat.messages
        turns = [messages[:1], messages[:3]]
        expected = [chatting.tokenizer.encode(RowRequest(messages=turn)) for turn in turns]
    with Generator.from_pretrained(engine="numpy", adapters=folders, capacity=256) as plain:
        for text, tokens in zip(said, expected, strict=True):
            row = RowRequest(token_ids=tokens, params=GREEDY, lora_weights_name="one")
            assert plain.generate(row).text == text
    assert isinstance(messages[0], Message)
    with load_generator(Journal.open(journal), machine=chat_machine) as loaded:
        assert replay(journal, generator=loaded, machine=chat_machine).divergence is None


# --- the bundled one --------------------------------------------------------------------------------------------------


def test_the_bundled_adapter_changes_the_voice_and_not_what_is_said() -> None:
    assert [*bundled_adapters()] == ["pirate"]
    size = sum(path.stat().st_size for path in bundled_adapters()["pirate"].iterdir())
    assert size < 2**20
    story, introduction, addition = "Tell me a story about a fox.", "Who are you?", "What is 3 plus 4?"
    with Generator.from_pretrained(engine="numpy", adapters={"pirate": None}) as generator:

        def said(prompt: str, adapter: str) -> list[str]:
            rows = [
                RowRequest(prompt=prompt, params=SamplingParams(seed=seed), lora_weights_name=adapter)
                for seed in range(8)
            ]
            return generator.generate(GenerationRequest(tuple(rows))).output_texts

        for prompt in (story, introduction, addition):
            assert all(text.startswith("Arr! ") for text in said(prompt, "pirate"))
            assert not any("Arr" in text for text in said(prompt, ""))
        assert all("fox" in text and PIRATE.search(text) for text in said(story, "pirate"))
        assert all(PIRATE.search(text) for text in said(introduction, "pirate"))
        assert not any(PIRATE.search(text) for text in (*said(story, ""), *said(introduction, "")))
        assert sum("7" in text for text in said(addition, "pirate")) >= 7
