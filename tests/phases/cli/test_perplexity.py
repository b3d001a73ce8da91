"""phasewalk perplexity: its figures are those of the function, quantised weights are compared, bad input is told."""

import json
from pathlib import Path

import pytest
from coarse_engine import coarse
from command_line import Command, finish

from gpu import engines
from phases import Generator, RowRequest
from phases.generator import DEMO_MODEL
from phases.perplexity import own_texts, perplexity_of

pytestmark = pytest.mark.slow

__all__ = ["coarse"]  # a fixture


def ids_of(generator: Generator, text: str) -> tuple[int, ...]:
    return generator.tokenizer.encode(RowRequest(prompt=text, raw=True))


def test_texts_are_measured_each_on_its_own_and_together(phasewalk: Command, chat_folder: Path) -> None:
    texts = ("the quick brown fox " * 9, "Decode appends\nto it, naïvely.\n")
    for name, text in zip(("a.txt", "b.txt"), texts, strict=True):
        Path(name).write_text(text, encoding="utf-8")
    command = (
        "perplexity", "a.txt", "b.txt", "--model", str(chat_folder), "--engine", "numpy", "--window", "24",
        "--stride", "10",
    )  # fmt: skip
    answer = phasewalk(*command, "--json")
    assert (answer.code, answer.err) == (0, "")
    value = json.loads(answer.out)
    [row] = value.pop("rows")
    assert value == {"engine": "numpy", "text": "a.txt, b.txt", "window": 24, "stride": 10}
    with Generator.from_pretrained(chat_folder, max_batch=1) as generator:
        found = perplexity_of(generator.engine, [ids_of(generator, text) for text in texts], window=24, stride=10)
    assert row.pop("seconds") > 0
    assert row == {
        "weights": "float32", "tokens": found.tokens, "perplexity": found.perplexity, "bits_per_token": found.bits,
        "change": 0.0, "same_likeliest": 1.0,
    }  # fmt: skip
    table = phasewalk(*command, "--rows", "1")
    assert (table.code, table.err) == (0, "")
    assert table.out.startswith("a.txt, b.txt; engine numpy, window 24, stride 10")
    for cell in ("float32", f"{found.tokens}", f"{found.perplexity:.4f}", f"{found.bits:.4f}"):
        assert f" {cell} " in table.out


def test_without_a_text_it_is_the_bundled_one_in_a_process_of_its_own(demo: Generator) -> None:
    done = finish("perplexity", "--engine", "numpy", "--json")
    assert (done.code, done.err) == (0, "")
    value = json.loads(done.out)
    assert value["text"] == "held_out.txt of the bundled demo model"
    assert (value["window"], value["stride"]) == (512, 256)
    lines = (DEMO_MODEL / "held_out.txt").read_text(encoding="utf-8").splitlines()
    found = perplexity_of(demo.engine, [ids_of(demo, line) for line in lines])
    assert value["rows"][0]["tokens"] == found.tokens > 4000
    assert value["rows"][0]["perplexity"] == found.perplexity
    assert 1.5 < found.perplexity < 1.7


def test_quantised_weights_are_compared_on_the_same_tokens(
    phasewalk: Command, chat_folder: Path, coarse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.txt").write_text("the quick brown fox jumps over the lazy dog " * 8)
    names = ("none", "int8", "fp8")
    kinds = tuple(word for name in names for word in ("--quantize", name))
    model = ("--model", str(chat_folder), "--engine", "coarse")
    rows = json.loads(phasewalk("perplexity", "a.txt", *model, *kinds, "--json").out)["rows"]
    assert [row["weights"] for row in rows] == ["float32", "int8", "fp8"]
    assert len({row["tokens"] for row in rows}) == 1
    for row, name in zip(rows, names, strict=True):
        [alone] = json.loads(phasewalk("perplexity", "a.txt", *model, "--quantize", name, "--json").out)["rows"]
        assert row["perplexity"] == alone["perplexity"]
        assert row["change"] == row["perplexity"] / rows[0]["perplexity"] - 1
    assert 0 < abs(rows[1]["change"]) < abs(rows[2]["change"])
    assert rows[0]["same_likeliest"] == 1 >= rows[1]["same_likeliest"] > rows[2]["same_likeliest"]
    monkeypatch.setenv("COLUMNS", "80")
    table = phasewalk("perplexity", "a.txt", *model, *kinds).out
    assert "perplexity" in table
    assert "…" not in table
    assert f" {rows[2]['change']:+.2%} " in table
    assert f" {rows[2]['same_likeliest']:.1%} " in table


def test_a_model_without_a_text_draws_one(phasewalk: Command, chat_folder: Path, coarse: None) -> None:
    command = ("perplexity", "--model", str(chat_folder), "--engine", "coarse", "--own-text", "90", "--window", "32")
    value = json.loads(phasewalk(*command, "--quantize", "none", "--quantize", "fp8", "--seed", "4", "--json").out)
    assert value["text"] == "the model's own"
    plain, rough = value["rows"]
    with Generator.from_pretrained(chat_folder, "numpy", max_batch=2, capacity=32) as generator:
        start = ids_of(generator, "\n")[0]
        texts = own_texts(generator.engine, 90, start=start, length=32, seed=4)
        assert plain["perplexity"] == perplexity_of(generator.engine, texts, window=32).perplexity
    assert plain["tokens"] == rough["tokens"] == 90
    assert rough["perplexity"] > plain["perplexity"]
    again = json.loads(phasewalk(*command, "--quantize", "none", "--seed", "4", "--json").out)["rows"][0]
    assert again["perplexity"] == plain["perplexity"]


def test_a_model_may_bring_a_text(phasewalk: Command, chat_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in chat_folder.iterdir():
        (model / file.name).symlink_to(file)
    none = phasewalk("perplexity", "--model", str(model))
    assert none.code == 2
    assert "has no held_out.txt" in none.err
    assert "--own-text" in none.err
    (model / "held_out.txt").write_text("the fox\n\nthe lazy dog\n")
    value = json.loads(phasewalk("perplexity", "--model", str(model), "--json").out)
    with Generator.from_pretrained(chat_folder, max_batch=1) as generator:
        counts = [len(ids_of(generator, line)) - 1 for line in ("the fox", "the lazy dog")]
    assert value["rows"][0]["tokens"] == sum(counts)


FILES = {"empty.txt": b"", "blank.txt": b" \n\n", "latin.txt": b"na\xefve", "zeros.bin": bytes(9), "short.txt": b"x"}
WRONG = [
    (("empty.txt",), 2, "empty.txt is empty: expected a text"),
    (("blank.txt",), 2, "blank.txt is empty: expected a text"),
    (("latin.txt",), 2, "latin.txt is no UTF-8 text"),
    (("zeros.bin",), 2, "zeros.bin is no text: it holds a NUL"),
    (("nowhere.txt",), 2, "nowhere.txt"),
    ((".",), 2, "directory"),
    (("short.txt",), 1, "text 0 has 1 token: expected at least 2"),
    (("fine.txt", "--own-text", "9"), 2, "give one of them"),
    (("fine.txt", "--window", "129"), 2, "the model has 128 positions, no window of 129"),
    (("fine.txt", "--window", "1"), 2, "--window"),
    (("fine.txt", "--window", "8", "--stride", "8"), 1, "a stride of 8 was asked for: expected 1 to 7"),
    (("fine.txt", "--stride", "0"), 2, "--stride"),
    (("fine.txt", "--rows", "0"), 2, "--rows"),
    (("fine.txt", "--quantize", "none", "--quantize", "int3"), 2, "'int3' is not one of 'none', 'int8', 'fp8', 'int4'"),
    (("fine.txt", "--engine", "abacus"), 2, "there is no engine 'abacus'"),
    (("--own-text", "0"), 2, "--own-text"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_bad_input_is_told_in_a_line(
    phasewalk: Command, chat_folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    for name, content in (FILES | {"fine.txt": b"the fox jumps"}).items():
        Path(name).write_bytes(content)
    engine = () if "--engine" in arguments else ("--engine", "numpy")
    answer = phasewalk("perplexity", *arguments, "--model", str(chat_folder), *engine)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err
    assert "Traceback" not in answer.err
    if code == 1:
        assert answer.err.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in engines(), reason="needs a device")
def test_weights_of_8_bits_cost_the_bundled_model_little(phasewalk: Command) -> None:
    kinds = tuple(word for name in ("none", "int8", "fp8") for word in ("--quantize", name))
    value = json.loads(phasewalk("perplexity", "--engine", "cuda", *kinds, "--json").out)
    plain, *quantised = value["rows"]
    assert [row["weights"] for row in value["rows"]] == ["bfloat16", "int8", "fp8"]
    assert 1.5 < plain["perplexity"] < 1.7
    for row in quantised:
        assert 0 < abs(row["change"]) < 0.03
        assert row["same_likeliest"] > 0.9
