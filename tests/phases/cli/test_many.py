"""phasewalk run --input: many requests, gone on with after any kill, with an answer or a reason for each."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from checkpoints import random_tensors, write_safetensors
from command_line import MAIN, Command, finish, spawn

from gpu import ModelConfig

pytestmark = pytest.mark.slow

NUMPY = ("--engine", "numpy")
FILES = ("--input", "requests.jsonl", "--output", "results.jsonl")


def write(requests: list[dict], folder: Path = Path()) -> None:
    (folder / "requests.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))


def results(folder: Path = Path()) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def short(prompt: str, tokens: int, **more: object) -> dict:
    return {"prompt": prompt, "params": {"temperature": 0, "max_new_tokens": tokens}} | more


@pytest.mark.parametrize(("size", "decode"), [(1, ()), (2, ()), (5, ()), (5, ("--decode", "together"))])
def test_each_request_has_the_answer_that_it_has_alone(
    phasewalk: Command, chat_folder: Path, size: int, decode: tuple[str, ...]
) -> None:
    write([short("the fox " * (number % 3 + 1), 1 + number % 4, id=f"r{number}") for number in range(5)])
    answer = phasewalk("run", *FILES, "--batch-size", str(size), "--model", str(chat_folder), *NUMPY, *decode)
    assert (answer.code, answer.out) == (0, "")
    assert "5 requests, 11 tokens in " in answer.err
    found = {result["id"]: result for result in results()}
    for number in range(5):
        alone = json.loads(
            phasewalk("run", "the fox " * (number % 3 + 1), "--model", str(chat_folder), *NUMPY, *decode,
                      "--json", "--temperature", "0", "--max-new-tokens", str(1 + number % 4)).out
        )  # fmt: skip
        result = found[f"r{number}"]
        assert (result["line"], result["text"], result["output_ids"], result["finish_reason"]) == (
            number + 1, alone["text"], alone["output_ids"], alone["finish_reason"]
        )  # fmt: skip


def test_rows_that_end_are_written_before_the_batch_ends(phasewalk: Command, chat_folder: Path) -> None:
    write([short("the fox", tokens) for tokens in (9, 1, 5)])
    assert phasewalk("run", *FILES, "--model", str(chat_folder), *NUMPY).code == 0
    assert [result["line"] for result in results()] == [2, 3, 1]


def test_a_bad_request_gets_a_reason_and_stops_nothing(phasewalk: Command, chat_folder: Path) -> None:
    write([short("the fox", 2), short("word " * 400, 2, id="long"), {"id": "odd", "prompt": "x", "heat": 1},
           short("", 2), short("the fox", 3)])  # fmt: skip
    with Path("requests.jsonl").open("a") as file:
        file.write("nonsense\n")
    answer = phasewalk("run", *FILES, "--model", str(chat_folder), *NUMPY)
    assert answer.code == 0
    assert "4 of them could not be answered: results.jsonl says why" in answer.err
    found = {result["line"]: result for result in results()}
    assert [found[line].get("output_tokens") for line in range(1, 7)] == [2, None, None, None, 3, None]
    for line, name, words in ((2, "long", "the capacity is 128 tokens"), (3, "odd", "no field 'heat'"), (4, 4, "empty"),
                            (6, 6, "no JSON")):  # fmt: skip
        assert found[line]["id"] == name
        assert words in found[line]["error"]


def test_a_request_that_breaks_its_batch_is_told_from_its_neighbours(phasewalk: Command, tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path / "model")
    model = ModelConfig.from_folder(folder)
    tensors = random_tensors(model)
    tensors["model.embed_tokens.weight"][7] = np.nan  # the token 7 cannot be computed
    write_safetensors(folder / "model.safetensors", tensors)
    write([{"token_ids": ids, "params": {"temperature": 0, "max_new_tokens": 2}} for ids in ([5], [6, 7], [8])])
    answer = phasewalk("run", *FILES, "--model", str(folder), *NUMPY)
    assert answer.code == 0, answer.err
    found = {result["line"]: result for result in results()}
    assert "error" in found[2]
    assert found[1]["output_tokens"] == found[3]["output_tokens"] == 2


def test_what_the_command_line_says_holds_where_a_request_says_nothing(phasewalk: Command, chat_folder: Path) -> None:
    write([{"prompt": "the fox"}, {"prompt": "the fox", "params": {"max_new_tokens": 2, "seed": 7}}])
    options = ("--model", str(chat_folder), *NUMPY, "--max-new-tokens", "3", "--seed", "9")
    assert phasewalk("run", *FILES, *options).code == 0
    found = {result["line"]: result for result in results()}
    assert (found[1]["output_tokens"], found[1]["seed"]) == (3, 9)
    assert (found[2]["output_tokens"], found[2]["seed"]) == (2, 7)
    other = phasewalk("run", *FILES, *options[:-1], "10")
    assert other.code == 1
    assert "made of another input, by another model or with other options" in other.err


def test_openai_s_lines_are_answered_in_openai_s_form(phasewalk: Command, chat_folder: Path) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": "the fox"}], "max_tokens": 3, "temperature": 0}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    asked = {
        "two": body | {"n": 3, "temperature": 1.0, "seed": 4}, "ten": body | {"n": 10},
        "told": body | {"logprobs": True, "top_logprobs": 2}, "odd": body | {"top_logprobs": 2},
        "prompt": body | {"prompt_logprobs": 1},
    }  # fmt: skip
    write([line, *(line | {"custom_id": name, "body": one} for name, one in asked.items())])
    assert phasewalk("run", *FILES, "--model", str(chat_folder), *NUMPY).code == 0
    found = {result["custom_id"]: result["response"] for result in results()}
    [one] = found["one"]["body"]["choices"]
    assert (one["finish_reason"], one["logprobs"]) == ("length", None)
    assert found["one"]["body"]["usage"]["completion_tokens"] == 3
    samples = found["two"]["body"]["choices"]
    assert [sample["index"] for sample in samples] == [0, 1, 2]
    assert len({sample["message"]["content"] for sample in samples}) > 1
    assert found["two"]["body"]["usage"]["completion_tokens"] == 9
    for name, words in (("ten", "n is 10, more than the 8 rows"), ("odd", "top_logprobs wants logprobs to be true"),
                        ("prompt", "prompt_logprobs, which an answer in OpenAI's form does not have")):  # fmt: skip
        assert found[name]["status_code"] == 400
        assert words in found[name]["body"]["error"]["message"]
    [told] = found["told"]["body"]["choices"]
    content = told["logprobs"]["content"]
    assert told["message"] == one["message"]
    assert "".join(token["token"] for token in content) == one["message"]["content"]
    for token in content:  # greedily, so that the likeliest came
        assert {"token": token["token"], "logprob": token["logprob"]}.items() <= token["top_logprobs"][0].items()
        assert len(token["top_logprobs"]) == 2
        assert token["bytes"] == (None if "\ufffd" in token["token"] else list(token["token"].encode()))


def test_a_completion_s_log_probabilities_are_in_openai_s_form(phasewalk: Command) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    write([{"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": body}])
    assert phasewalk("run", *FILES, *NUMPY).code == 0
    [completed] = results()[0]["response"]["body"]["choices"]
    told = completed["logprobs"]
    assert len(told["tokens"]) == 6
    assert [completed["text"][start:] for start in told["text_offset"]] == [
        "".join(told["tokens"][place:]) for place in range(6)
    ]
    assert [len(top) for top in told["top_logprobs"]] == [2] * 6
    assert [max(top.values()) for top in told["top_logprobs"]] == told["token_logprobs"]


def test_samples_and_log_probabilities_are_those_of_the_command_line(phasewalk: Command, chat_folder: Path) -> None:
    asked = [{"n": 3, "seed": 5}, {"logprobs": 1, "prompt_logprobs": 0}, {"n": 2, "logprobs": 0, "seed": 1}, {"n": 5}]
    write([{"prompt": "fox", "params": {"max_new_tokens": 4} | params} for params in asked])
    model = ("--model", str(chat_folder), *NUMPY)
    assert phasewalk("run", *FILES, *model, "--batch-size", "4").code == 0
    found = {result["line"]: result for result in results()}
    assert "n is 5, more than the 4 rows of a --batch-size" in found[4]["error"]
    told = ("text", "output_ids", "finish_reason", "seed", "logprobs", "prompt_logprobs")
    for line, options in ((1, ("-n", "3", "--seed", "5")), (2, ("--logprobs", "1", "--prompt-logprobs", "0")),
                          (3, ("-n", "2", "--logprobs", "0", "--seed", "1"))):  # fmt: skip
        seed = () if "seed" in asked[line - 1] else ("--seed", str(found[line]["seed"]))
        alone = json.loads(phasewalk("run", "fox", *model, "--max-new-tokens", "4", *options, *seed, "--json").out)
        rows, samples = alone.get("rows", [alone]), found[line].get("samples", [found[line]])
        assert [{name: row.get(name) for name in told} for row in rows] == [
            {name: sample.get(name) for name in told} for sample in samples
        ]
        assert found[line]["output_tokens"] == sum(row["output_tokens"] for row in rows)


def test_biases_and_penalties_of_a_request_hold(phasewalk: Command, chat_folder: Path) -> None:
    params = {"logit_bias": {"7": 10000}, "repetition_penalty": 2, "max_new_tokens": 3, "temperature": 0}
    write([{"prompt": "fox", "params": params}])
    assert phasewalk("run", *FILES, "--model", str(chat_folder), *NUMPY).code == 0
    assert [result["output_ids"] for result in results()] == [[7, 7, 7]]


# --- kills --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [0, 1, 3, 8, 11])
def test_after_a_kill_no_answered_request_is_answered_again(chat_folder: Path, tmp_path: Path, answers: int) -> None:
    write([{"prompt": f"fox {number}", "params": {"max_new_tokens": 40, "temperature": 1}} for number in range(12)],
          tmp_path)  # fmt: skip
    command = ("run", *FILES, "--batch-size", "2", "--model", str(chat_folder), *NUMPY)
    output = tmp_path / "results.jsonl"
    with spawn(*command, cwd=tmp_path) as process:
        while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") >= answers):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    before = output.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    output.write_bytes(before + b'{"request":"')  # as if the kill had come amid a line
    done = finish(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "was taken away" in done.err
    assert output.read_bytes().startswith(kept)  # seeds are fresh: what is answered again differs
    assert sorted(result["line"] for result in results(tmp_path)) == list(range(1, 13))
    whole = output.read_bytes()
    again = finish(*command, cwd=tmp_path)
    assert (again.code, output.read_bytes()) == (0, whole)
    assert "nothing was left to do" in again.err
    assert "engine" not in again.err  # no model was loaded


def test_ctrl_c_keeps_what_is_answered(chat_folder: Path, tmp_path: Path) -> None:
    write([{"prompt": "fox", "params": {"max_new_tokens": 100}} for number in range(200)], tmp_path)
    command = ("run", *FILES, "--batch-size", "2", "--model", str(chat_folder), *NUMPY)
    output = tmp_path / "results.jsonl"
    with spawn(*command, cwd=tmp_path) as process:
        while not (output.exists() and output.read_bytes().count(b"\n") >= 2):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 200 requests are answered; the same command goes on from here" in err
    assert "Traceback" not in err
    assert len(results(tmp_path)) == int(err.splitlines()[-1].split()[0])


def test_two_processes_do_not_share_an_output(chat_folder: Path, tmp_path: Path) -> None:
    write([{"prompt": "fox", "params": {"max_new_tokens": 100}} for number in range(200)], tmp_path)
    command = ("run", *FILES, "--model", str(chat_folder), *NUMPY)
    with spawn(*command, cwd=tmp_path) as process:
        while not (tmp_path / "results.jsonl").exists() or not (tmp_path / "results.jsonl").read_bytes():
            time.sleep(0.01)
        second = finish(*command, cwd=tmp_path)
        process.kill()
        process.communicate(timeout=60)
    assert second.code == 1
    assert "is being written by another process" in second.err


# --- what is refused ----------------------------------------------------------------------------------------------

WRONG = [
    (("run", "--input", "nowhere.jsonl", "--output", "o"), "nowhere.jsonl"),
    (("run", "--input", "requests.jsonl"), "give both"),
    (("run", "--output", "o"), "give both"),
    (("run", "--batch-size", "2"), "give both"),
    (("run", "hello", *FILES), "a prompt makes no sense beside --input"),
    (("run", *FILES, "--json"), "--json makes no sense beside --input"),
    (("run", *FILES, "--journal", "j"), "--journal makes no sense beside --input"),
    (("run", *FILES, "--batch-size", "0"), "batch-size"),
    (("run", "--input", "requests.jsonl", "--output", "requests.jsonl"), "is what is read"),
    (("run", "--input", "requests.jsonl", "--output", "no/such/folder"), "cannot be made"),
    (("run", "--input", "requests.jsonl", "--output", "."), "is a folder"),
    (("run", "--input", "requests.jsonl", "--output", "pipe"), "is a FIFO"),
    (("run", "--input", "pipe", "--output", "o"), "is a FIFO"),
    (("run", "--input", "empty.jsonl", "--output", "o"), "holds no request"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_makes_no_sense_is_refused_before_anything_is_done(
    phasewalk: Command, arguments: tuple[str, ...], message: str
) -> None:
    write([short("x", 1)])
    Path("empty.jsonl").write_text("\n")
    os.mkfifo("pipe")
    answer = phasewalk(*arguments)
    assert answer.code == 2
    assert message in " ".join(answer.err.split())
    assert not Path("results.jsonl").exists()
    assert not Path("o").exists()


def test_a_file_of_somebody_else_is_left_as_it_is(phasewalk: Command, chat_folder: Path) -> None:
    write([short("x", 1)])
    Path("results.jsonl").write_text("my notes")
    answer = phasewalk("run", *FILES, "--model", str(chat_folder), *NUMPY)
    assert (answer.code, Path("results.jsonl").read_text()) == (1, "my notes")
    assert "results.jsonl, line 1 holds no answer" in answer.err


def test_a_terminal_is_shown_how_far_it_is(chat_folder: Path, tmp_path: Path) -> None:
    write([{"prompt": "fox", "params": {"max_new_tokens": 30}} for number in range(20)], tmp_path)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", MAIN, "run", *FILES, "--model", str(chat_folder), *NUMPY]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path,
                          env=os.environ | {"TERM": "xterm"}) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux says that nobody writes any more
            pass
        os.close(ours)
    assert process.returncode == 0
    assert b"/20" in shown
    assert b"requests" in shown
