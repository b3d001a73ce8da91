"""What a row is constrained to be, it is: whatever the schema, however it is drawn, and whatever is done to its run."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_files import TOKENIZERS, write_tokenizer
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers

from phases import Constraint, ConstraintError, FinishReason, Generator, RequestError, SamplingParams
from phases.replay import replay
from statemachine import Journal, PhaseError
from statemachine.record.records import StepRecord
from statemachine.testing import machine_rules, run_rules

pytestmark = pytest.mark.slow

SETTINGS = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
DRAWN = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 1}, {"temperature": 2.5, "seed": 2, "top_k": 0}]
PROMPT = "Tell me a story about a fox."


def written(generator: Generator, constraint: Any, **params: Any) -> str:
    """The text of a row that is constrained, and that has come to its end."""
    params = {"max_new_tokens": 700} | params
    result = generator.generate(PROMPT, SamplingParams(constraint=constraint, **params))
    assert result.finish_reasons == [FinishReason.STOP]
    return result.text


# --- it is what it is to be -----------------------------------------------------------------------------------------

NAMES = st.text("abcde", min_size=1, max_size=3)
SCALARS = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4)
LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^[a-z]{1,4}[0-9]$"}]),
    st.tuples(st.integers(-200, 200), st.integers(0, 300)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": sum(ends)}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 4)).map(
        lambda ends: {"type": "string", "minLength": ends[0], "maxLength": sum(ends)}
    ),
    st.lists(SCALARS, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
)


def objects(schemas: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    return st.dictionaries(NAMES, schemas, max_size=3).flatmap(
        lambda properties: st.lists(st.sampled_from([*properties, "z"]), unique=True, max_size=3).map(
            lambda wanted: {
                "type": "object",
                "properties": properties,
                "required": [n for n in wanted if n in properties],
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda schemas: st.one_of(
        objects(schemas),
        st.tuples(schemas, st.integers(0, 2), st.integers(0, 2)).map(
            lambda given: {"type": "array", "items": given[0], "minItems": given[1], "maxItems": given[1] + given[2]}
        ),
        st.lists(schemas, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=5,
)


@SETTINGS
@given(schema=objects(SCHEMAS) | SCHEMAS, drawn=st.sampled_from(DRAWN))
def test_json_validates(demo: Generator, schema: dict, drawn: dict) -> None:
    text = written(demo, Constraint(json_schema=schema), **drawn)
    jsonschema.validate(json.loads(text), schema)
    assert text == text.strip()


PIECES = st.sampled_from(["a", "fox", " ", "[a-z]", "[0-9]", "é", r"\.", "[^a]", r"\w", "☃"])


def _regexes(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(parts, min_size=1, max_size=3).map("".join),
        st.lists(parts, min_size=1, max_size=3).map(lambda some: f"({'|'.join(some)})"),
        st.tuples(parts, st.sampled_from(["?", "{2}", "{0,3}", "{1,2}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    )


@SETTINGS
@given(regex=st.recursive(PIECES, _regexes, max_leaves=6), drawn=st.sampled_from(DRAWN))
def test_all_of_the_text_matches_the_regular_expression(demo: Generator, regex: str, drawn: dict) -> None:
    text = written(demo, Constraint(regex=regex), **drawn)
    assert re.fullmatch(regex, text, re.DOTALL), (regex, text)


@SETTINGS
@given(choice=st.lists(st.text(max_size=8), min_size=1, max_size=4), drawn=st.sampled_from(DRAWN))
def test_the_text_is_one_of_the_choice(demo: Generator, choice: list[str], drawn: dict) -> None:
    assert written(demo, Constraint(choice=tuple(choice)), **drawn) in choice


@pytest.mark.parametrize(
    "grammar",
    ['start: "(" start ")" | "x"', '%llguidance {}\nstart: "(" start ")" | "x"', 'root ::= "(" root ")" | "x"'],
)
@pytest.mark.parametrize("drawn", DRAWN)
def test_the_text_is_of_the_grammar(demo: Generator, grammar: str, drawn: dict) -> None:
    text = written(demo, Constraint(grammar=grammar), **drawn)
    depth = text.count("(")
    assert text == "(" * depth + "x" + ")" * depth


def test_every_choice_can_come(demo: Generator) -> None:
    """A mask only takes tokens away: which of those that are left comes is the model's and the seed's to say."""
    texts = {written(demo, {"choice": ["fox", "owl", "cat"]}, temperature=3.0, seed=seed) for seed in range(40)}
    assert texts == {"fox", "owl", "cat"}


def test_json_is_written_as_json_dumps_does_unless_the_schema_says_otherwise(demo: Generator) -> None:
    schema: dict[str, Any] = {"const": {"a": [1, 2], "b": {}}}
    assert written(demo, {"json_schema": schema}) == json.dumps(schema["const"])
    tight = schema | {"x-guidance": {"item_separator": ",", "key_separator": ":"}}
    assert written(demo, {"json_schema": json.dumps(tight)}) == '{"a":[1,2],"b":{}}'
    loose = {"type": "array", "items": {"const": 1}, "maxItems": 3, "x-guidance": {"whitespace_flexible": True}}
    texts = [written(demo, {"json_schema": loose}, temperature=5.0, top_k=0, seed=seed) for seed in range(9)]
    assert any(text != json.dumps(json.loads(text)) for text in texts)


def test_a_row_without_room_for_the_whole_ends_with_its_beginning(demo: Generator) -> None:
    params = SamplingParams(constraint=Constraint(regex="(abc){20}"), max_new_tokens=7)
    result = demo.generate(PROMPT, params)
    assert result.finish_reasons == [FinishReason.LENGTH]
    assert ("abc" * 20).startswith(result.text)


def test_rows_of_a_batch_have_their_own_constraint_or_none(demo: Generator) -> None:
    plain = SamplingParams(temperature=1.0, seed=5, max_new_tokens=30)
    alone = demo.generate("Count from 3 to 9.", plain)
    params = [
        SamplingParams(constraint=Constraint(regex="[0-9]{9}"), seed=1),
        plain,
        SamplingParams(constraint=Constraint(choice=("a whole sentence of it",)), seed=2),
    ]
    result = demo.generate([PROMPT, "Count from 3 to 9.", PROMPT], params)
    assert re.fullmatch("[0-9]{9}", result.output_texts[0])
    assert result.output_ids[1] == alone.output_ids[0]
    assert result.output_texts[2] == "a whole sentence of it"


# --- whatever is done to its run ------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 999}}, "required": ["n"]}
BOUND = Constraint(json_schema=SCHEMA | {"additionalProperties": False})
PARAMS = [
    SamplingParams(constraint=BOUND, temperature=1.2, seed=6, max_new_tokens=60),
    SamplingParams(temperature=1.0, seed=7, max_new_tokens=8),
]
EDITS = {
    "sampling": st.fixed_dictionaries({"row": st.just(0), "temperature": st.sampled_from([0.0, 2.0])}),
    "append": st.fixed_dictionaries({"row": st.integers(0, 1), "text": st.sampled_from(["7", "fox", "{"])}),
}


@pytest.fixture(scope="module")
def eight(chat_folder: Path) -> Iterator[Generator]:
    with Generator.from_pretrained(chat_folder, max_batch=8) as loaded:
        yield loaded


def test_a_constrained_generation_keeps_the_rules(eight: Generator) -> None:
    """In both interpreters, saved, restored, taken back and forth, forked and replayed, its tokens are the same."""
    contexts = st.integers(0, 3).map(
        lambda seed: (
            eight.start(
                ["the fox", "fox"],
                [SamplingParams(constraint=Constraint(regex="[0-9]{2,4}(a|b)"), seed=seed), PARAMS[1]],
            ).context
        )
    )
    spare = eight.start("fox", PARAMS[0])
    spare.close()
    under_test = machine_rules(
        spare.machine, contexts, resources=spare.resources, edits=EDITS, signals={"cancel_row": st.integers(0, 1)},
        may_raise=RequestError,
    )  # fmt: skip
    run_rules(under_test, settings(SETTINGS, max_examples=15, stateful_step_count=14))
    long_prompts = "prefill -> prefill when ~prompts_filled"
    assert {*under_test.coverage.never.get("transitions", ())} <= {long_prompts}


def test_a_run_that_goes_back_to_any_step_comes_to_the_same(demo: Generator, tmp_path: Path) -> None:
    run = demo.start([PROMPT, "Hello!"], PARAMS, keep=True, journal=tmp_path / "run.jsonl")
    run.start()
    ids, steps = run.context.output_ids, run.step_count
    assert {step.phase for step in run.steps()} >= {"constrain", "sample"}
    for place in range(1, steps, 3):
        run.goto(place)
        run.resume()
        assert run.context.output_ids == ids, place
    run.close()


def test_a_snapshot_goes_on_in_another_process(demo: Generator, tmp_path: Path) -> None:
    with demo.start(PROMPT, PARAMS[0]) as run:
        run.start()
        text = demo.result(run).text
    for place, kv in ((9, "copy"), (10, "copy"), (11, "recompute"), (14, "recompute")):
        with demo.start(PROMPT, PARAMS[0], keep=True) as run:
            run.until(lambda run, place=place: run.step_count == place + 4)
            run.back(4)  # its logits are made anew, there or here
            run.snapshot(tmp_path / f"{place}.snap", kv=kv)
    code = (
        "import sys\n"
        "from phases import Generator\n"
        "with Generator.from_pretrained(self_check=False) as generator:\n"
        "    for path in sys.argv[1:]:\n"
        "        with generator.resume(path) as run:\n"
        "            run.resume()\n"
        "            print(generator.result(run).text)"
    )
    snapshots = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", code, *snapshots], capture_output=True, text=True, check=True)
    assert done.stdout == 4 * f"{text}\n"


def test_a_fork_keeps_the_constraint_and_takes_another_way(demo: Generator) -> None:
    params = SamplingParams(constraint=Constraint(regex="[a-z]{12}"), temperature=2.0, seed=1)
    with demo.start(PROMPT, params, keep=True) as run:
        run.until(lambda run: len(run.context.output_ids[0]) == 3)
        with run.fork() as fork:
            fork.edit("sampling", seed=2)
            run.resume()
            fork.resume()
            texts = [demo.result(one).text for one in (run, fork)]
    assert all(re.fullmatch("[a-z]{12}", text) for text in texts)
    assert len(set(texts)) == 2


def test_a_record_says_how_many_tokens_were_allowed_and_verifies(demo: Generator, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    demo.start([PROMPT, "Hello!"], PARAMS, journal=path).start()
    records = Journal.open(path).records()
    allowed = [step.o for step in records if isinstance(step, StepRecord) and step.p == "constrain"]
    assert allowed[0] == [1, demo.engine.model.vocab]
    for mode in ("verify", "play", "fork"):
        done = replay(path, mode, generator=None if mode == "play" else demo, at=9 if mode == "fork" else None)
        assert done.divergence is None
        done.run.close()


def test_the_record_of_a_constrained_run_is_played_without_llguidance(demo: Generator, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    demo.start(PROMPT, PARAMS[0], journal=path).start()
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from phases.replay import replay\n"
        f"print(replay({str(path)!r}, 'play').run.context.output_texts[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


def test_edits_that_would_break_a_constraint_are_refused_and_others_taken(demo: Generator) -> None:
    with demo.start(PROMPT, SamplingParams(constraint=Constraint(regex="[a-z]{6}!"), seed=1), keep=True) as run:
        run.until(lambda run: len(run.context.output_ids[0]) == 1)
        before = run.context.output_ids
        for edit, change in (
            ("append", {"text": "FOX"}), ("append", {"text": "foxes and owls"}), ("force", {"token": 5}),
            ("sampling", {"constraint": None}), ("sampling", {"stop_token_ids": ()}),
        ):  # fmt: skip
            with pytest.raises(RequestError, match=r"constrained to|stays as it was|has none"):
                run.edit(edit, **change)
        assert run.context.output_ids == before
        assert not run.context.forced[0]
        run.edit("append", text="a")
        run.resume()
        assert re.fullmatch("[a-z]{6}!", demo.result(run).text)


# --- whatever its tokenizer -----------------------------------------------------------------------------------------


def loaded(folder: Path, tokenizer: Fast, *, vocab: int | None = None, stop: str | None = None) -> Generator:
    """A tiny random model with this tokenizer, whose last special token ends a row."""
    stop_id = max(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    write_checkpoint(folder, vocab_size=vocab or tokenizer.get_vocab_size(), eos_token_id=stop_id, bos_token_id=None)
    config = (folder / "config.json").read_text()
    write_tokenizer(folder, tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "config.json").write_text(config)
    return Generator.from_pretrained(folder, "numpy", capacity=96, self_check=False)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("more", [0, 40])
def test_a_constraint_is_kept_with_every_kind_of_tokenizer(tmp_path: Path, kind: str, more: int) -> None:
    """Also where the model has tokens that its tokenizer does not know."""
    tokenizer = TOKENIZERS[kind]()
    with loaded(tmp_path, tokenizer, vocab=tokenizer.get_vocab_size() + more) as generator:
        for regex in ("[ a-z]{5}", "( the| fox|an)[a-z]{2}", "naïve|猫が", r'\{"a": [0-9]{1,3}\}', "[^a-z]{3}"):
            for seed in range(3):
                params = SamplingParams(constraint=Constraint(regex=regex), temperature=2.0, seed=seed, top_k=0)
                result = generator.generate("fox", params)
                assert result.finish_reasons == [FinishReason.STOP]
                assert re.fullmatch(regex, result.text), (regex, result)


# --- what is refused ------------------------------------------------------------------------------------------------

NO_CONSTRAINTS: list[tuple[Any, str]] = [
    ({}, "exactly one of them; given: none"),
    ({"regex": "a", "choice": ["b"]}, "given: regex, choice"),
    ({"regexp": "a"}, "one of json_schema, regex, choice, grammar"),
    ("[0-9]+", "a constraint is a Constraint or a mapping"),
    ({"regex": 7}, "a constraint's regex is text, not 7"),
    ({"grammar": b"start"}, "a constraint's grammar is text"),
    ({"regex": "\ud800"}, "half a character"),
    ({"choice": []}, "a list of strings, at least one"),
    ({"choice": "yes"}, "a list of strings, at least one, not 'yes'"),
    ({"choice": ["yes", 7]}, "a list of strings"),
    ({"choice": 7}, "a list of strings"),
    ({"json_schema": "{"}, "is no JSON: Expecting"),
    ({"json_schema": [1]}, "a JSON schema is an object"),
    ({"json_schema": "true"}, "a JSON schema is an object"),
    ({"json_schema": {"const": {1, 2}}}, "is no JSON: Object of type set"),
    ({"json_schema": {"const": float("nan")}}, "is no JSON"),
]


@pytest.mark.parametrize(("constraint", "message"), NO_CONSTRAINTS)
def test_what_is_no_constraint_is_refused_where_it_is_made(constraint: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(constraint=constraint)


def test_a_schema_that_never_ends_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["not"] = endless
    with pytest.raises(RequestError, match="is no JSON"):
        Constraint(json_schema=endless)


IMPOSSIBLE: list[tuple[dict, str]] = [
    ({"regex": "[a-"}, r"row 1: the regex '\[a-' cannot be used: .*unclosed character class"),
    ({"regex": "(?=a)b"}, "look-around.* is not supported"),
    ({"regex": "(a)\\1"}, "backreferences are not supported"),
    ({"json_schema": {"type": "intger"}}, "the json_schema .* cannot be used: Invalid type: intger"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "Unimplemented keys.*uniqueItems"),
    ({"json_schema": {"not": {"type": "integer"}}}, "Unimplemented keys.*not"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
    ({"json_schema": {"$ref": "http://example.com/schema"}}, "does not fetch"),
    ({"grammar": "start: word"}, "unknown name: .word"),
    ({"grammar": "no grammar at all"}, "cannot be used"),
]


@pytest.mark.parametrize(("constraint", "message"), IMPOSSIBLE)
def test_a_constraint_that_cannot_be_kept_is_refused_before_anything_runs(
    demo: Generator, tmp_path: Path, constraint: dict, message: str
) -> None:
    params = [SamplingParams(), SamplingParams(constraint=constraint)]
    for ask in (demo.generate, demo.start, lambda x, params: next(demo.stream(x, params))):
        with pytest.raises(RequestError, match=message):
            ask(["Hello!", "Hello!"], params)
    with pytest.raises(RequestError, match=message):
        demo.start(["Hello!", "Hello!"], params, journal=tmp_path / "run.jsonl")
    assert not list(tmp_path.iterdir())
    assert demo.free_rows == 3


@pytest.mark.parametrize(("stops", "message"), [((), "it has none"), ((2**20,), "it has none"), ((5, 300), "' ='")])
def test_a_row_that_could_not_end_with_its_whole_text_is_refused(
    demo: Generator, stops: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        demo.start(PROMPT, SamplingParams(constraint=BOUND, stop_token_ids=stops))


def test_a_text_that_no_token_makes_fails_the_run_by_name(tmp_path: Path) -> None:
    tokenizer = Fast(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["abc"], trainers.BpeTrainer(special_tokens=["<|end|>"], show_progress=False))
    with loaded(tmp_path, tokenizer) as generator:
        constraint = Constraint(regex="abé")
        run = generator.start([1], SamplingParams(constraint=constraint, temperature=0))
        with pytest.raises(PhaseError, match="constrain") as raised:
            run.start()
        assert isinstance(raised.value.__cause__, ConstraintError)
        wanted = "no token of the model goes on with 'ab' as the regex 'abé' wants it"
        assert str(raised.value.__cause__) == wanted
        run.close()
        assert generator.free_rows == generator.engine.kv_cache.rows


def test_a_grammar_that_grows_too_complex_fails_the_run_by_name(demo: Generator) -> None:
    grammar = "start: a a a a a a a a\na: (b | c | d)*\nb: /[a-z]/ a\nc: /[a-y]/ a\nd: /[a-x]/ a a"
    params = SamplingParams(
        constraint=Constraint(grammar=grammar), min_new_tokens=100, max_new_tokens=400, temperature=2.0, seed=0
    )
    with pytest.raises(PhaseError) as raised:
        demo.generate(PROMPT, params)
    assert isinstance(raised.value.__cause__, ConstraintError)


def test_without_llguidance_a_constraint_is_refused_with_what_to_install_and_all_else_works() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from phases import Generator, RequestError\n"
        "with Generator.from_pretrained(self_check=False) as generator:\n"
        "    print(generator.generate('Hello', {'max_new_tokens': 3}).text)\n"
        "    try: generator.generate('Hello', {'constraint': {'regex': 'a'}})\n"
        "    except RequestError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, refusal = done.stdout.splitlines()
    assert answer.startswith("Hello")
    assert refusal == "a constraint needs llguidance: pip install 'phasewalk[constrain]'"
