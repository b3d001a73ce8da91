"""phasewalk resume: a generation that was interrupted or killed goes on, in a process of its own."""

import fcntl
import json
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import finish, spawn

pytestmark = pytest.mark.slow


def until_it_decodes(process: subprocess.Popen) -> None:
    """Read its phases until the first Decode; it cannot have run far ahead, as the pipe holds few of its lines."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[1:2] == ["decode"]:
            return


def hold(process: subprocess.Popen) -> subprocess.Popen:
    """Let what a process writes to stderr fill up a small pipe, so that it waits for who reads it."""
    fcntl.fcntl(process.stderr.fileno(), fcntl.F_SETPIPE_SZ, 4096)
    return process


def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    prompt = "Tell me a story about a fox."
    whole = spawn("run", prompt, "--seed", "4", "--json", cwd=tmp_path)
    process = hold(spawn("run", prompt, "--seed", "4", "--snapshot", "fox.snap", "--phases", cwd=tmp_path))
    until_it_decodes(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.splitlines()[-1] == "paused and saved; go on with:  phasewalk resume fox.snap"
    assert finish("resume", "fox.snap", cwd=tmp_path).out == json.loads(whole.communicate(timeout=60)[0])["text"] + "\n"


def test_resume_goes_on_with_the_journal_of_a_run_that_was_killed(tmp_path: Path) -> None:
    prompt = "Tell me a story about a fox."
    whole = spawn("run", prompt, "--seed", "4", "--json", cwd=tmp_path)
    killed = hold(spawn("run", prompt, "--seed", "4", "--journal", "fox.jsonl", "--phases", cwd=tmp_path))
    until_it_decodes(killed)
    killed.kill()
    killed.communicate(timeout=60)
    refused = finish("resume", "fox.jsonl", "--journal", "b.jsonl", cwd=tmp_path)
    assert "a journal is gone on with in its own file" in refused.err.replace("\n", " ")
    resumed = finish("resume", "fox.jsonl", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert resumed.out == json.loads(whole.communicate(timeout=60)[0])["text"] + "\n"
    verified = finish("replay", "fox.jsonl", cwd=tmp_path)
    assert verified.code == 0
    assert "verified" in verified.err
