"""Tokenizers loaded without transformers give the ids, texts and prompts that AutoTokenizer gives."""

import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import TEXT, TOKENIZERS, write_tokenizer
from transformers import AutoTokenizer

from gpu import CheckpointError
from phases.request import Message, RowRequest
from phases.tokenizer import Tokenizer
from phases.tokenizer_files import Backend, FastBackend, TransformersBackend, load_backend

TEXTS = [
    *TEXT, "", " ", "  two  spaces  ", "\n\n\t", "a\r\nb", "<|endoftext|>",
    "x <left> y <right> z <word>s <word> <both> q",
    "NORM norm \uff2eorm", "<s>hi</s>", " <|eot_id|> ", "e\u0301 é", "🦊 👩‍👩‍👧‍👦 \u200b", "\0\x1b[31m",
    "<think>hm</think>",
    "<|im_start|>user\nhi<|im_end|>", "▁under▁", "it's 2024, isn't it?", "<extra> <new> [UNK]", "the the\u00a0the",
    "<0x41>", "ﬁ ½ ①",
]  # fmt: skip

CLASSES = [None, "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast", "LlamaTokenizer",
           "Qwen2Tokenizer", "GPT2Tokenizer"]  # fmt: skip
MODELS = ["llama", "mistral", "qwen2", "qwen3"]

CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "named": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None},
    "flags": {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True, "bos_token": "<s>",
              "eos_token": "</s>", "clean_up_tokenization_spaces": True, "legacy": True, "model_max_length": 3},
    "added": {"eos_token": {"__type": "AddedToken", "content": "<extra>", "lstrip": True, "rstrip": False,
                            "normalized": False, "single_word": False},
              "additional_special_tokens": ["<new>", "<|im_end|>"], "image_token": "[UNK]", "mask_token": "<s>"},
    "extra": {"extra_special_tokens": {"boi_token": "<new>", "eoi_token": "<extra>"}, "unk_token": "[UNK]"},
    "list": {"extra_special_tokens": ["<extra>", "<new>"], "pad_token": "<|endoftext|>"},
}  # fmt: skip


def compare(folder: Path, mine: Backend) -> None:
    """Compare with AutoTokenizer in all that generation uses."""
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert dict(mine.special_tokens) == theirs.special_tokens_map
    assert mine.vocab_size == len(theirs)
    for text, special in itertools.product(TEXTS, (True, False)):
        ids = theirs(text, add_special_tokens=special)["input_ids"]
        assert list(mine.encode(text, special_tokens=special)) == ids, (text, special)
        decoded = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert mine.decode(ids) == decoded, text
    draw = random.Random(7)
    for _ in range(9):  # among them ids beyond the vocabulary
        ids = [draw.randrange(mine.vocab_size + 9) for _ in range(30)]
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def needs_no_transformers(tokenizer: str, model_type: str, name: str | None) -> bool:
    """Where AutoTokenizer takes tokenizer.json whole, or would build the same from it."""
    name = name and name.removesuffix("Fast")
    byte_level = "sentencepiece" not in tokenizer
    whole = name in ("PreTrainedTokenizer", "TokenizersBackend") or (name == "LlamaTokenizer" and byte_level)
    match model_type:
        case "llama":
            return whole or name is None
        case "mistral":
            return whole or name in (None, "LlamaTokenizer")
        case "qwen2":
            return tokenizer == "qwen" and (whole or name in (None, "Qwen2Tokenizer"))
        case _:
            return whole or (tokenizer == "qwen" and name in (None, "Qwen2Tokenizer"))


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_kind_of_tokenizer_under_every_class(tmp_path: Path, tokenizer: str, model_type: str) -> None:
    made = TOKENIZERS[tokenizer]()
    for number, name in enumerate(CLASSES):
        config = {} if name is None else {"tokenizer_class": name}
        folder = write_tokenizer(tmp_path / str(number), made, config, model_type=model_type, decoder=number % 2 == 0)
        fast = needs_no_transformers(tokenizer, model_type, name)
        loaded = load_backend(folder)
        assert isinstance(loaded, FastBackend if fast else TransformersBackend), name
        if fast:
            compare(folder, loaded)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_special_tokens_of_every_kind(tmp_path: Path, tokenizer: str, config: str) -> None:
    made = TOKENIZERS[tokenizer]()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIGS[config]}
    for decoder in (False, True):
        folder = write_tokenizer(tmp_path / f"{decoder}", made, settings, decoder=decoder)
        loaded = load_backend(folder)
        assert isinstance(loaded, FastBackend)
        compare(folder, loaded)
    if tokenizer == "qwen":
        folder = write_tokenizer(tmp_path / "qwen", made, CONFIGS[config], model_type="qwen2", decoder=True)
        compare(folder, load_backend(folder))


UNUSUAL: list[tuple[dict[str, Any], str | None]] = [
    ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, None),
    ({"split_special_tokens": True}, None),
    ({"fix_mistral_regex": True}, None),
    ({}, "special_tokens_map.json"),
    ({}, "added_tokens.json"),
    ({}, "tekken.json"),
]


@pytest.mark.parametrize(("config", "file"), UNUSUAL)
def test_in_doubt_transformers_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], file: str | None
) -> None:
    folder = write_tokenizer(tmp_path, TOKENIZERS["llama3"](), config)
    if file:
        (folder / file).write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(CheckpointError, match=r"needs transformers.*pip install 'phasewalk\[transformers\]'"):
        load_backend(folder)


# --- chat templates -------------------------------------------------------------------------------------------------

CHATS = [
    [("user", "hello")],
    [("system", "Be brief."), ("user", "hi  "), ("assistant", "  Yes?\n"), ("user", "<b>\"quoted\" & 'more'</b> é🦊")],
    [("tool", "42"), ("user", "")],
]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 3": "{{- bos_token }}\n{%- if strftime_now is defined %}\n    {%- set date = strftime_now('%Y') %}\n"
    "{%- endif %}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date + '\n\n' + system + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- 'answer:' }}\n{%- endif %}\n",
    "mistral": "{{ bos_token }}{% for message in messages %}{% if message['role'] not in ['user', 'assistant', 'system'"
    "] %}{{ raise_exception('Only user and assistant!') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}",
    "qwen": "{%- if tools %}tools{%- endif %}{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not "
    "(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}"
    "{%- set ns.multi_step_tool = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{{ ns.last }}"
    "{%- for m in messages %}{%- set c = m.content.split('</think>')[-1].lstrip('\\n') %}{{ m.role ~ ': ' ~ c }}"
    "{%- if loop.last or (not loop.last and m.reasoning_content) %}!{%- endif %}{%- endfor %}",
    "filters": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages|map(attribute='role')|join(', ') }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ {'a': 1, 'b': [true, none]}|items|list }}"
    "{{ ['b', 'a']|sort|join('/') }}{{ 'x'|upper|lower|title|capitalize }}{{ 'a\nb'|indent(2, true) }}"
    "{{ 3.7|round|int }}"
    "{{ [1, 2]|sum }}{{ '%s-%05d'|format('x', 7) }}{{ '{:>4}|{}'.format(1, 'é') }}{{ 'aXb'|replace('X', '--') }}"
    "{{ '%s **bold** %d' % ('y', 3) }}{{ messages[0].content|default('none')|e }}{{ undefined_thing }}{{ 2 ** 5 }}"
    "{{ 'a' * 3 }}{{ [1] * 2 }}{{ ', '.join(['p', 'q']) }}{{ 'ab'.replace('a', 'c').ljust(4) }}"
    "{{ messages|last|dictsort }}"
    "{{ dict(a=1) }}{{ 'a,b'.split(',')|reverse|list }}{{ 'x'.join('abc') }}{{ ['a', 1]|join('-') }}"
    "{{ 7 // 2 - 7 % 2 }}",
    "statements": "{% macro show(m, end='.') %}{{ m.role }}{{ caller() if caller else '' }}{{ end }}{% endmacro %}\n"
    "  {% for m in messages if m.role != 'system' %}\n    {{ show(m) }}\n  {% if loop.index > 1 %}{% break %}"
    "{% endif %}\n"
    "  {% else %}none{% endfor %}\n  {% call show(messages[0], end='?') %}inner{% endcall %}\n"
    "{% set block | upper %}\nin"
    "{{ messages|length }}\n{% endset %}{{ block }}{% generation %}said{{ block }}{% endgeneration %}{# no #}"
    "{% filter trim %}  x  {% endfilter %}{% for a, b in {'k': 'v'}.items() %}{{ a ~ b }}{% continue %}never"
    "{% endfor %}",
    "types": "{{ messages is sequence }}{{ messages[0] is mapping }}{{ tools is none }}{{ documents is defined }}"
    "{{ 'é' in messages[-1].content }}{{ messages[0].content is string }}{{ pad_token }}|{{ image_token }}|"
    "{{ eos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% elif true %}no{% endif %}"
    "{{ range(3)|list }}",
    "refusing": "{{ raise_exception('no') }}",
    "wrong": "{% if %}",
}


def outcome(render: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """What came of it; None if it was refused."""
    try:
        return str(render(*args, **kwargs))
    except Exception:
        return None


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_templates_render_as_transformers_renders_them(tmp_path: Path, template: str) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
              "image_token": "<img>", "chat_template": TEMPLATES[template]}  # fmt: skip
    folder = write_tokenizer(tmp_path, TOKENIZERS["llama3"](), config)
    mine, theirs = Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rendered = 0
    for chat in CHATS:
        plain = [{"role": role, "content": content} for role, content in chat]
        messages = tuple(Message(role, content) for role, content in chat)
        expected = outcome(theirs.apply_chat_template, plain, tokenize=False, add_generation_prompt=True)
        assert outcome(mine._render, messages) == expected
        rendered += expected is not None
    assert bool(rendered) == (template not in ("refusing", "wrong"))


PLACES = ["config", "list", "jinja", "additional", "several", "both"]


@pytest.mark.parametrize("place", PLACES)
def test_the_chat_template_is_found_where_transformers_finds_it(tmp_path: Path, place: str) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ messages[0].content }}"}]
    given: dict[str, Any] = {"config": "C", "list": named, "several": named[:1], "both": "C"}
    folder = write_tokenizer(tmp_path, TOKENIZERS["llama3"](), {"chat_template": given.get(place)})
    if place in ("jinja", "additional", "both"):
        (folder / "chat_template.jinja").write_text("J\n")
    if place == "additional":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    mine, theirs = Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert mine.has_chat_template
    chat = [{"role": "user", "content": "x"}]
    expected = outcome(theirs.apply_chat_template, chat, tokenize=False, add_generation_prompt=True)
    assert outcome(mine._render, (Message("user", "x"),)) == expected
    assert (expected is None) == (place == "several")


def test_a_template_of_a_processor_is_better_than_none(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, TOKENIZERS["llama3"]())
    assert not Tokenizer.from_pretrained(folder).has_chat_template
    (folder / "chat_template.json").write_text('{"chat_template": "P{{ messages[0].content }}"}')
    assert Tokenizer.from_pretrained(folder)._render((Message("user", "x"),)) == "Px"


def test_a_tokenizer_of_transformers_renders_with_the_same_template(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "chat_template": TEMPLATES["mistral"]}
    folder = write_tokenizer(tmp_path, TOKENIZERS["sentencepiece_bpe"](), config)
    mine, theirs = Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "the quick"}]
    row = RowRequest(messages=(Message("user", "the quick"),))
    assert list(mine.encode(row)) == theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert mine.encode(RowRequest(prompt="the", raw=True)) == tuple(theirs("the")["input_ids"])
    assert mine.decode([1, 300, 2]) == theirs.decode([1, 300, 2], skip_special_tokens=True)
