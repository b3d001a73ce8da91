"""The command line: what it prints, what it refuses, and how it exits."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from command_line import Command
from graphviz_program import needs_dot

from statemachine import to_mermaid

REPOSITORY = Path(__file__).parents[2]


SHORT = ("--temperature", "0", "--max-new-tokens", "6")


def test_run_streams_and_json_says_the_same(phasewalk: Command, chat_folder: Path) -> None:
    plain = phasewalk("run", "the fox", "--model", str(chat_folder), *SHORT)
    piped = phasewalk("run", "--model", str(chat_folder), *SHORT, stdin="the fox\n")
    as_json = phasewalk("run", "the fox", "--model", str(chat_folder), *SHORT, "--json")
    assert (plain.code, plain.err) == (0, "")
    assert piped == plain
    value = json.loads(as_json.out)
    assert value["text"] + "\n" == plain.out
    assert value["output_tokens"] == len(value["output_ids"]) == 6
    assert value["finish_reason"] == "length"
    messages = Path("chat.json")
    messages.write_text(json.dumps([{"role": "user", "content": "the fox"}]))
    assert phasewalk("run", "--messages", str(messages), "--model", str(chat_folder), *SHORT) == plain


def test_a_seed_repeats_the_text(phasewalk: Command, chat_folder: Path) -> None:
    options = ("run", "the fox", "--model", str(chat_folder), "--temperature", "1.5", "--max-new-tokens", "20")
    first = json.loads(phasewalk(*options, "--json").out)
    again = phasewalk(*options, "--seed", str(first["seed"]))
    assert again.out == first["text"] + "\n"


def test_stats_and_phases_go_to_stderr(phasewalk: Command, chat_folder: Path) -> None:
    answer = phasewalk("run", "the fox", "--model", str(chat_folder), *SHORT, "--stats", "--phases")
    lines = answer.err.splitlines()
    assert [line.split()[1] for line in lines[:5]] == ["tokenize", "prefill", "sample", "decode", "check_stop"]
    assert "prompt tokens" in lines[0]
    assert lines[2].endswith("-> decode  (~nothing_left)")
    assert "tokens/s" in lines[-1]
    assert "MB/token" in lines[-1]
    assert "GB/s" in lines[-1]
    value = json.loads(phasewalk("run", "x", "--model", str(chat_folder), *SHORT, "--stats", "--json").out)
    stats = value["stats"]
    assert stats["bytes_per_s"] == pytest.approx(stats["bytes_per_token"] * stats["tokens_per_s"])
    assert stats["bandwidth_share"] == pytest.approx(stats["bytes_per_s"] / stats["bandwidth_bytes_per_s"])


USAGE = [
    (("run", "x", "--temperature", "-1"), "temperature"),
    (("run", "x", "--temperature", "nan"), "temperature"),
    (("run", "x", "--top-p", "0"), "top_p is a number above 0"),
    (("run", "x", "--top-k", "few"), "top-k"),
    (("run", "x", "--engine", "abacus"), "there is no engine 'abacus'; engines: auto, numpy"),
    (("run", "--messages", "nowhere.json"), "nowhere.json"),
    (("run", "x", "--messages", "chat.json"), "stands for the prompt"),
    (("run", "--messages", "broken.json"), "is not JSON"),
    (("run", "--messages", "empty.json"), "holds no chat"),
    (("run", "x", "--no-such-option"), "no-such-option"),
    (("walk",), "walk"),
    (("check", "no_such_module:machine"), "cannot import 'no_such_module'"),
    (("check", "json:dumps"), "is a function, not a Machine"),
    (("check", "json:nothing"), "expected MODULE:NAME"),
    (("diagram", "--highlight", "nowhere"), "no phase 'nowhere'; phases: tokenize"),
    (("diagram", "--format", "bmp"), "bmp"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_a_wrong_command_line_exits_with_2(phasewalk: Command, arguments: tuple[str, ...], message: str) -> None:
    Path("chat.json").write_text("[]")
    Path("empty.json").write_text("[]")
    Path("broken.json").write_text("[{")
    answer = phasewalk(*arguments)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


FAILURES = [
    (("run", ""), "row 0 is empty"),
    (("run", "word " * 400), "the capacity is 128 tokens"),
    (("run", "x", "--model", "nowhere/at/all"), "nowhere/at/all"),
    (("run", "x", "--capacity", "100000"), "128 positions"),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES)
def test_a_failure_exits_with_1_and_one_line(
    phasewalk: Command, chat_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    model = () if "--model" in arguments else ("--model", str(chat_folder))
    answer = phasewalk(*arguments, *model)
    assert answer.code == 1
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("phasewalk: ")
    assert answer.out in ("", "\n")


def test_no_prompt_and_no_pipe_is_a_usage_error(phasewalk: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    answer = phasewalk("run")
    assert answer.code == 2
    assert "nothing to say" in answer.err


def test_check_proves_the_built_in_machine(phasewalk: Command) -> None:
    answer = phasewalk("check")
    assert answer.code == 0
    assert "generation is sound" in answer.out
    assert "~nothing_left" in answer.out
    assert "signal cancel: to cancelled from any phase" in answer.out


def test_check_lists_the_findings_of_a_users_machine(phasewalk: Command) -> None:
    Path("lights_of_mine.py").write_text(
        "from statemachine import *\n"
        "red, green, off = Phase('red'), Phase('green'), End('off')\n"
        "dark = Guard('dark', lambda context: context.dark)\n"
        "machine = Machine('lights', start=red, transitions=[Transition(red, green, dark), Transition(green, red)])\n"
    )
    answer = phasewalk("check", "lights_of_mine:machine")
    assert answer.code == 1
    assert "stuck 'red': no transition is enabled when ~dark" in answer.out
    assert "no end 'green'" in answer.out


def test_diagram_draws_every_format(phasewalk: Command) -> None:
    from phases import machine

    assert phasewalk("diagram").out == to_mermaid(machine)
    assert phasewalk("diagram", "--format", "mermaid", "--highlight", "decode").out.endswith("class s3 lit\n")
    assert phasewalk("diagram", "-o", "machine.dot").code == 0
    assert Path("machine.dot").read_text().startswith("digraph generation")


@needs_dot
def test_diagram_draws_pictures(phasewalk: Command) -> None:
    phasewalk("diagram", "-o", "machine.svg")
    phasewalk("diagram", "-o", "machine.png")
    ET.parse("machine.svg")
    assert Path("machine.png").read_bytes().startswith(b"\x89PNG")


@needs_dot
def test_the_exported_diagrams_are_current(tmp_path: Path) -> None:
    """Coordinates differ between versions of Graphviz; what is drawn must not."""
    sys.path.insert(0, str(REPOSITORY / "diagrams"))
    from export import export

    export(tmp_path)

    def drawn(path: Path) -> list[str]:
        return sorted(
            "".join(node.itertext()).strip() for node in ET.parse(path).iter() if node.text and node.text.strip()
        )

    hint = "stale: run python diagrams/export.py"
    assert drawn(tmp_path / "generation.svg") == drawn(REPOSITORY / "diagrams" / "generation.svg"), hint
    mermaid = (REPOSITORY / "diagrams" / "generation.mmd").read_text(encoding="utf-8")
    assert (tmp_path / "generation.mmd").read_text(encoding="utf-8") == mermaid, hint


def test_doctor_tells_what_there_is(phasewalk: Command) -> None:
    answer = phasewalk("doctor")
    assert answer.code == 0
    for what in ("engine numpy", "memory reads", "Graphviz", "import statemachine", "transformers"):
        assert what in answer.out


def test_doctor_warns_of_another_owner_of_our_import_names(
    phasewalk: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "python_statemachine-3.2.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: python-statemachine\nVersion: 3.2.2\n")
    (info / "top_level.txt").write_text("statemachine\n")
    (info / "RECORD").write_text("statemachine/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = phasewalk("doctor")
    assert answer.code == 1
    assert "also owned by python-statemachine" in answer.out


def spawn(*arguments: str, **options: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "from phases.cli import main; main()", *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from phases.cli import main; sys.argv = ['phasewalk', '--help']\n"
        "try: main()\n"
        "except SystemExit as exited: code = exited.code\n"
        "heavy = [m for m in ('numpy', 'transformers', 'torch', 'cuda', 'tokenizers') if m in sys.modules]\n"
        "print(code, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"
    assert 'phasewalk run "What does Prefill do?"' in done.stdout
    help_of_run = spawn("run", "--help").communicate(timeout=60)[0]
    assert "--temperature" in help_of_run


def test_ctrl_c_cancels_at_the_next_boundary(chat_folder: Path, tmp_path: Path) -> None:
    config = json.loads((chat_folder / "config.json").read_text())
    for name in os.listdir(chat_folder):
        (tmp_path / name).write_bytes((chat_folder / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": []}')
    process = spawn(
        "run", "fox", "--model", str(tmp_path), "--capacity", "100000", "--max-new-tokens", "99999", "--phases"
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "decode" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "cancelled"
    assert "Traceback" not in err
    assert out


def test_a_closed_pipe_is_no_traceback(chat_folder: Path) -> None:
    process = spawn("run", "fox", "--model", str(chat_folder), "--max-new-tokens", "100", "--temperature", "0")
    assert process.stdout is not None
    process.stdout.close()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.returncode in (0, 1)
