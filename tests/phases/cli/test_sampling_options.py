"""What the command line says of sampling is what Python says of it, on the terminal and as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from phases import Generator, RowRequest
from phases.replay import replay

PROMPT = "Tell me a story about a fox."
GIVEN: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--stop", "fox", "--stop", "zebra"), {"stop": ("fox", "zebra")}),
    (("--stop", "fox", "--keep-stop"), {"stop": "fox", "keep_stop": True}),
    (("--repetition-penalty", "1.5"), {"repetition_penalty": 1.5}),
    (("--presence-penalty", "0.8", "--frequency-penalty", "0.5"), {"presence_penalty": 0.8, "frequency_penalty": 0.5}),
    (("--no-repeat-ngram-size", "2"), {"no_repeat_ngram_size": 2}),
    (("--logit-bias", "17=4.5", "--logit-bias", "20=-100"), {"logit_bias": {17: 4.5, 20: -100.0}}),
    (("--allow", "17", "--allow", "18"), {"allowed_token_ids": (17, 18)}),
    (("--forbid", "262"), {"forbidden_token_ids": (262,)}),
    (("--min-new-tokens", "25"), {"min_new_tokens": 25}),
    (("-n", "3"), {"n": 3}),
    (("--logprobs", "2", "--prompt-logprobs", "1"), {"logprobs": 2, "prompt_logprobs": 1}),
]


@pytest.mark.parametrize(("options", "params"), GIVEN)
def test_options_are_the_fields_of_that_name(
    phasewalk: Command, demo: Generator, options: tuple[str, ...], params: dict[str, Any]
) -> None:
    how = ("--seed", "5", "--max-new-tokens", "30", "--engine", "numpy")
    value = json.loads(phasewalk("run", PROMPT, *how, *options, "--json").out)
    expected = demo.generate(RowRequest(prompt=PROMPT), {"seed": 5, "max_new_tokens": 30} | params)
    rows = value.get("rows", [value])
    assert [row["text"] for row in rows] == expected.output_texts
    assert [row["output_ids"] for row in rows] == expected.output_ids
    assert [row["finish_reason"] for row in rows] == expected.finish_reasons
    for name in ("logprobs", "prompt_logprobs"):
        for row, found in zip(rows, getattr(expected, name), strict=True):
            told = [one and one["logprob"] for one in row[name]] if name in row else None
            assert told == (None if found is None else [one and one.logprob for one in found])


@pytest.mark.slow
@pytest.mark.parametrize(("options", "params"), [given for given in GIVEN if given[0][0] not in ("-n", "--logprobs")])
def test_a_run_that_is_stepped_takes_them_too(
    phasewalk: Command, demo: Generator, tmp_path: Path, options: tuple[str, ...], params: dict[str, Any]
) -> None:
    how = ("--seed", "5", "--max-new-tokens", "30", "--engine", "numpy", "--plain")
    path = tmp_path / "stepped.jsonl"
    assert phasewalk("step", PROMPT, *how, *options, "--journal", str(path), stdin="run\n").code == 0
    stepped = replay(path, "play").run.context
    expected = demo.generate(RowRequest(prompt=PROMPT), {"seed": 5, "max_new_tokens": 30} | params)
    assert stepped.output_ids == expected.output_ids
    assert stepped.output_texts == expected.output_texts


def test_log_probabilities_are_told_in_lines_beside_the_text(phasewalk: Command, demo: Generator) -> None:
    how = ("--temperature", "0", "--max-new-tokens", "3", "--engine", "numpy")
    answer = phasewalk("run", "Count from 3 to 9.", *how, "--logprobs", "2")
    result = demo.generate("Count from 3 to 9.", {"temperature": 0, "max_new_tokens": 3, "logprobs": 2})
    assert answer.out == result.text + "\n"
    lines = answer.err.splitlines()
    assert len(lines) == 3
    for line, one in zip(lines, result.logprobs[0] or [], strict=True):
        assert one is not None
        assert line.startswith(f"output {one.logprob:10.4f}  {demo.tokenizer.decode_token(one.token_id)!r}")
        assert line.endswith(f"{demo.tokenizer.decode_token(one.top[1][0])!r} {one.top[1][1]:.4f}")


def test_samples_are_recorded_and_replayed(phasewalk: Command, tmp_path: Path) -> None:
    path = str(tmp_path / "three.jsonl")
    how = ("-n", "3", "--seed", "1", "--max-new-tokens", "8", "--logprobs", "1", "--stop", "e", "--engine", "numpy")
    answer = phasewalk("run", PROMPT, *how, "--journal", path)
    assert [line.split("]")[0] for line in answer.out.splitlines()] == ["[row 0", "[row 1", "[row 2"]
    for command in (("replay", path), ("report", path, "-o", str(tmp_path / "report.html")), ("trace", path)):
        assert phasewalk(*command).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--logit-bias", "17"), "'17' is no ID=BIAS, as in 17=-5"),
        (("--logit-bias", "17=x"), "'17=x' is no ID=BIAS"),
        (("--logit-bias", "17=1e9"), "logit_bias is a number from -10000 to 10000"),
        (("--repetition-penalty", "0"), "repetition_penalty is a number from 0.0001"),
        (("--stop", ""), "stop holds an empty string"),
        (("-n", "0"), "should be greater than or equal to 1"),
        (("--logprobs", "101"), "should be less than or equal to 100"),
    ],
)
def test_what_makes_no_sense_is_a_wrong_command_line(
    phasewalk: Command, options: tuple[str, ...], message: str
) -> None:
    answer = phasewalk("run", "x", *options)
    assert (answer.code, answer.out) == (2, "")
    assert message in " ".join(answer.err.replace("│", " ").split())


def test_a_token_that_there_is_not_is_told_in_a_line(phasewalk: Command) -> None:
    answer = phasewalk("run", "x", "--forbid", "1000000", "--engine", "numpy")
    assert (answer.code, answer.out.strip()) == (1, "")
    assert "forbidden_token_ids of row 0 names token id 1000000" in answer.err
