"""The folder of a prompt cache: what is in it is used by other processes, and believed only if it is whole and ours."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import Command, phasewalk
from safetensors.numpy import load_file, save_file

from phases import GenerationResult, Generator, SamplingParams
from phases.errors import PromptCacheWarning
from phases.prompt_folder import PromptFolder

__all__ = ["phasewalk"]  # a fixture

PARAMS = SamplingParams(temperature=0.8, seed=5, max_new_tokens=4, stop_token_ids=())
LONG = tuple(int(token) for token in np.random.default_rng(3).integers(3, 90, 300))
SHAPE = (2, 2, 2, 96, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def expected(folder: Path) -> GenerationResult:
    with Generator.from_pretrained(folder, "numpy", prompt_cache=0) as generator:
        return generator.generate(LONG, PARAMS)


@pytest.fixture
def kept(folder: Path, tmp_path: Path) -> Path:
    """A folder in which the three blocks of LONG lie."""
    generated(folder, tmp_path / "kept")
    return tmp_path / "kept"


def generated(folder: Path, kept: Path, **options: object) -> GenerationResult:
    """What a generator that knows of nothing but the folder makes of LONG."""
    given = {"engine": "numpy", **options}
    with Generator.from_pretrained(folder, prompt_cache_dir=kept, **given) as generator:  # type: ignore[arg-type]
        return generator.generate(LONG, PARAMS)


def files_of(kept: Path) -> list[Path]:
    """The blocks of a prompt, its beginning last, as that was used last."""
    return sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("memory", ["256 MB", 0])
def test_another_generator_finds_what_one_has_kept(
    folder: Path, kept: Path, expected: GenerationResult, memory: object
) -> None:
    again = generated(folder, kept, prompt_cache=memory)
    assert again == expected
    assert again.reused_tokens == [288]
    assert len(files_of(kept)) == 3
    assert kept.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("command", ["run", "file"])
def test_another_process_finds_it(folder: Path, tmp_path: Path, phasewalk: Command, command: str) -> None:
    told = "the cat and the dog " * 20
    source = tmp_path / "requests.jsonl"
    source.write_text(json.dumps({"prompt": told, "raw": True, "params": {"max_new_tokens": 3, "seed": 1}}) + "\n")
    options = ["--model", str(folder), "--engine", "numpy", "--prompt-cache", str(tmp_path / "kept")]
    of_command = {
        "run": [told, "--raw", "--max-new-tokens", "3", "--seed", "1", "--json"],
        "file": ["--input", str(source), "--output", str(tmp_path / "results.jsonl")],
    }
    assert phasewalk("run", *of_command[command], *options)[0] == 0
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert written
    script = f"from phases.cli import main; import sys; sys.argv = {['phasewalk', 'run', *of_command['run'], *options]}"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; main()"], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout)
    assert found["reused_tokens"] == 96 * ((found["prompt_tokens"] - 1) // 96)
    assert all(path.stat().st_mtime_ns > written[path.name] for path in (tmp_path / "kept").iterdir())


def test_counts_are_told(folder: Path, tmp_path: Path, phasewalk: Command) -> None:
    said = "the cat and the dog " * 9
    options = ["--model", str(folder), "--engine", "numpy", "--seed", "1", "--max-new-tokens", "2", "--stats"]
    for command, words, stdin in (
        (["run", said, "--raw"], " prompt tokens, 96 of them from a cache", None),
        (["chat"], " 96 from the cache, ", said + "\n"),
    ):
        kept = ["--prompt-cache", str(tmp_path / command[0])]
        assert words not in (answer := phasewalk(*command, *options, *kept, stdin=stdin)).out + answer.err
        assert words in (answer := phasewalk(*command, *options, *kept, stdin=stdin)).out + answer.err


def test_what_else_can_change_a_bit_finds_nothing(folder: Path, kept: Path, tmp_path: Path) -> None:
    other = write_chat_checkpoint(tmp_path, max_position_embeddings=1024, rms_norm_eps=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generated(other, kept).reused_tokens == [0]
        assert generated(folder, kept, threads=2).reused_tokens == [0]
        assert generated(folder, kept, engine="onnx").reused_tokens == [0]
        assert generated(folder, kept, max_batch=3).reused_tokens == [288]


def _flipped(path: Path, data: bytes) -> None:
    path.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])


def _link(path: Path, data: bytes) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _another_block(path: Path, data: bytes) -> None:
    path.write_bytes(next(file for file in files_of(path.parent) if file != path).read_bytes())


def _another_shape(path: Path, data: bytes) -> None:
    [(name, array)] = load_file(path).items()
    save_file({name: array.reshape(array.shape[1], array.shape[0], *array.shape[2:])[..., :4]}, path)


def _with_header(header: bytes) -> Callable[[Path, bytes], None]:
    def write(path: Path, data: bytes) -> None:
        values = data[8 + int.from_bytes(data[:8], "little") :]
        path.write_bytes(len(header).to_bytes(8, "little") + header + values)

    return write


def _of_another_model(path: Path, data: bytes) -> None:
    """Whole, and with the right name and checksum, but bound to something else."""
    [array] = load_file(path).values()
    path.unlink()
    other = PromptFolder(path.parent, limit=10**9, bound_to={"model": "another"})
    other.write([path.stem], {path.stem: array * 2})


def _empty_folder(path: Path, data: bytes) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path, data: bytes) -> None:
    path.unlink()
    os.mkfifo(path)


def _sparse(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "a bit": _flipped,
    "empty": lambda path, data: path.write_bytes(b""),
    "torn": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "torn by a byte": lambda path, data: path.write_bytes(data[:-1]),
    "a byte more": lambda path, data: path.write_bytes(data + b"\0"),
    "huge": _sparse,
    "no header": lambda path, data: path.write_bytes(bytes(len(data))),
    "a header without end": lambda path, data: path.write_bytes(b"\xff" * 8 + data[8:]),
    "no JSON": _with_header(b"{"),
    "deep JSON": _with_header(b"[" * 4000),
    "no object": _with_header(b"[]"),
    "no text": _with_header(b"\xff\xfe"),
    "a number too large": _with_header(b'{"kv": ' + b"9" * 4000 + b"}"),
    "another block": _another_block,
    "another shape": _another_shape,
    "another model": _of_another_model,
    "a link": _link,
    "a folder": _empty_folder,
    "a pipe": _fifo,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, 2], ids=["last block", "first block"])
def test_what_is_damaged_or_foreign_is_ignored_with_one_warning(
    folder: Path, kept: Path, expected: GenerationResult, damage: str, which: int
) -> None:
    path = files_of(kept)[which]
    whole = path.read_bytes()
    DAMAGES[damage](path, whole)
    with (
        Generator.from_pretrained(folder, "numpy", prompt_cache=0, prompt_cache_dir=kept) as generator,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        first, second = generator.generate(LONG, PARAMS), generator.generate(LONG, PARAMS)
    assert first == second == expected
    assert first.reused_tokens == [{0: 192, 2: 0}[which]]
    assert [warning.category for warning in told] == [PromptCacheWarning]
    assert str(told[0].message).startswith(f"an entry of the prompt cache {kept} is ignored: ")
    if path.is_file() and not path.is_symlink():  # mended
        assert path.read_bytes()[-1000:] == whole[-1000:]
        assert second.reused_tokens == [288]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert generated(folder, kept).reused_tokens == [288]
    else:  # what is no file of ours is left alone
        assert damage in ("a link", "a folder", "a pipe")
        assert second.reused_tokens == first.reused_tokens


def test_no_byte_of_a_file_can_be_another(folder: Path, kept: Path) -> None:
    path = files_of(kept)[-1]
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    bound = PromptFolder(kept, limit=10**9, bound_to={})
    bound.bound_to = json.loads(whole[8:length])["__metadata__"]["bound_to"]
    for place in (*range(0, length, 7), *range(length, len(whole), 997)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = bound.read(path.stem, SHAPE)
        assert found is None or json.loads(path.read_bytes()[8:length]) == json.loads(whole[8:length]), place
    path.write_bytes(whole)
    assert bound.read(path.stem, SHAPE) is not None


def test_the_folder_keeps_to_its_limit_and_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    of_other_use = tmp_path / "notes.txt"
    of_other_use.write_text("x" * 10**6)
    blocks = {sha256(bytes([n])).hexdigest(): np.full(SHAPE, n, np.float32) for n in range(8)}
    names = list(blocks)
    size = 4 * int(np.prod(SHAPE)) + 1000
    kept = PromptFolder(tmp_path, limit=3 * size, bound_to={})
    kept.write(names[:3], blocks)  # a prompt of three blocks
    kept.write(names[3:4], blocks)
    assert [kept.read(name, SHAPE) is not None for name in names[:4]] == [True, True, False, True]
    kept.touch(names[:2])
    kept.write(names[4:5], blocks)
    assert [kept.read(name, SHAPE) is not None for name in names[:5]] == [True, True, False, False, True]
    assert of_other_use.exists()
    none = PromptFolder(tmp_path, limit=0, bound_to={})
    none.write(names[5:6], blocks)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


WRITER = """
import sys
import numpy as np
from hashlib import sha256
from phases.prompt_folder import PromptFolder
folder = PromptFolder(sys.argv[1], limit=int(sys.argv[2]), bound_to={})
print("ready", flush=True)
sys.stdin.readline()
shape = (2, 2, 2, 96, 8)
for turn in range(int(sys.argv[3])):
    names = [sha256(bytes([n])).hexdigest() for n in range(12)]
    for n, name in enumerate(names):
        found = folder.read(name, shape)
        assert found is None or (found == n).all()
        folder.write(names[: n + 1], {name: np.full(shape, n, np.float32)})
"""


def writer(kept: Path, *, limit: int, turns: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, str(kept), str(limit), str(turns)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_read_write_and_take_away_at_once(tmp_path: Path) -> None:
    limit = 5 * (4 * int(np.prod(SHAPE)) + 1000)
    both = [writer(tmp_path, limit=limit, turns=6) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        _, errors = process.communicate("\n", timeout=100)
        assert process.returncode == 0, errors
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


def test_a_kill_leaves_nothing_half(tmp_path: Path) -> None:
    for pause in (0.01, 0.03, 0.06):
        process = writer(tmp_path, limit=10**9, turns=10**6)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(pause)
        process.kill()
        process.communicate()
    kept = PromptFolder(tmp_path, limit=10**9, bound_to={})
    names = [sha256(bytes([n])).hexdigest() for n in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n, name in enumerate(names):
            found = kept.read(name, SHAPE)
            assert found is None or (found == n).all()
        last = sha256(b"last").hexdigest()
        kept.write([last], {last: np.zeros(SHAPE, np.float32)})
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


FULL = """
import resource, sys, warnings
from phases import Generator, SamplingParams
with Generator.from_pretrained(sys.argv[1], "numpy", prompt_cache=0, prompt_cache_dir=sys.argv[2]) as generator:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # as if the disk were full
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            ids = generator.generate(list(range(3, 90)) * 3, SamplingParams(temperature=0, max_new_tokens=3)).output_ids
            assert len(ids[0]) == 3
    print(*(warning.message for warning in told), sep="\\n")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk_is_told_once_and_stops_nothing(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder), str(tmp_path / "kept")], capture_output=True, text=True, timeout=100,
        check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"the prompt cache {tmp_path / 'kept'} cannot be written: ")
    assert len(done.stdout.splitlines()) == 1
    assert list((tmp_path / "kept").iterdir()) == []


def test_what_is_no_folder_is_refused(folder: Path, tmp_path: Path, phasewalk: Command) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Generator.from_pretrained(folder, "numpy", prompt_cache_dir=tmp_path / "file")
    status, _, err = phasewalk("run", "x", "--prompt-cache", str(tmp_path / "file"))
    assert status == 2
    assert "--prompt-cache" in err
    status, _, err = phasewalk(
        "run", "x", "--prompt-cache", str(tmp_path / "new"), "--prompt-cache-limit", "lots", "--engine", "numpy"
    )
    assert status != 0
    assert "lots" in err
    assert not (tmp_path / "new").exists()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No test leaves a warning unlooked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptCacheWarning)
        yield
