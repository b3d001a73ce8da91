"""What a constraint costs a token: the mask at a vocabulary of 128,000, and setting the logits of a row by it.

python benchmarks/constrain_mask.py

The vocabulary is that of a byte-level BPE: the 256 bytes, and the words and pieces of words that Python's own library
has most. Texts are walked by tokens drawn at random among those allowed, which is harder than what a model would say.
"""

import argparse
import json
import re
import statistics
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gpu.masking import mask_logits
from phases import Constraint
from phases.grammars import Follower, Grammars
from phases.tokenizer import Tokenizer as CheckpointTokenizer

VOCAB = 128_000
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "kind": {"enum": ["student", "teacher", "guest"]},
        "friends": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
    "required": ["name", "age", "email", "kind", "friends"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "JSON of a schema": Constraint(json_schema=PERSON),
    "any JSON": Constraint(json_schema={"type": "object"}),
    "regular expression": Constraint(regex=r"[A-Z][a-z]+( [A-Z][a-z]+)*, born (19|20)[0-9]{2} in [A-Z][a-z ]+\."),
    "choice of 100": Constraint(choice=tuple(f"the answer number {number}" for number in range(100))),
    "grammar": Constraint(grammar='start: sum\nsum: part ("+" part)*\npart: /[0-9]+/ | "(" sum ")"'),
}
WORDS = re.compile(r" ?[^\W\d_]+| ?[^\s\w]{1,4}|\d{1,3}|\s+|_+")


def vocabulary(size: int) -> Tokenizer:
    """A byte-level tokenizer with so many tokens, the last of which is special."""
    words: Counter[str] = Counter()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            words.update(WORDS.findall(path.read_text(encoding="utf-8", errors="ignore")))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for end in range(2, min(len(word), 24) + 1):
            pieces[word[:end]] += count if end == len(word) else count // 4
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    for piece, _ in pieces.most_common():
        if len(tokens) == size - 1:
            break
        tokens["".join(part for part, _ in to_bytes.pre_tokenize_str(piece))] = None
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = to_bytes, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def walk(grammars: Grammars, constraint: Constraint, tokens: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds that each mask took, and setting logits by it."""
    random, follower, seen = np.random.default_rng(seed), Follower(grammars, constraint), list[int]()
    logits, masks, applied = np.zeros(grammars.vocab, np.float32), [], []
    end = grammars.vocab - 1
    for _ in range(tokens):
        logits[:] = 0
        began = time.perf_counter()
        follower.follow(seen)
        mask = follower.allowed((end,))
        made = time.perf_counter()
        mask_logits(logits, mask)
        applied.append(time.perf_counter() - made)
        masks.append(made - began)
        token = int(random.choice(np.flatnonzero(logits == 0)))
        if token == end:
            break
        seen.append(token)
    return masks, applied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=VOCAB, metavar="N", help=f"tokens (default {VOCAB:,})")
    parser.add_argument("--texts", type=int, default=20, metavar="N", help="texts a constraint (default 20)")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="at most so many a text (default 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vocabulary(arguments.vocab).save(str(Path(folder) / "tokenizer.json"))
        tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        (Path(folder) / "config.json").write_text('{"model_type": "llama"}')
        tokenizer = CheckpointTokenizer.from_pretrained(Path(folder))
    began = time.perf_counter()
    grammars = Grammars.of(tokenizer, tokenizer.vocab_size)
    prepared = time.perf_counter() - began
    found, all_masks = {}, []
    for name, constraint in CONSTRAINTS.items():
        began = time.perf_counter()
        grammars.matcher(constraint)
        compiled = time.perf_counter() - began
        masks, applied = [], []
        for seed in range(arguments.texts):
            some, more = walk(grammars, constraint, arguments.tokens, seed)
            masks += some
            applied += more
        all_masks += masks
        found[name] = {
            "tokens": len(masks), "compile_ms": compiled * 1e3, "median_us": statistics.median(masks) * 1e6,
            "p95_us": float(np.quantile(masks, 0.95)) * 1e6, "most_us": max(masks) * 1e6,
            "apply_us": statistics.median(applied) * 1e6,
        }  # fmt: skip
    median = statistics.median(all_masks) * 1e6
    if arguments.json:
        print(json.dumps({"vocab": grammars.vocab, "prepare_s": prepared, "median_us": median, "constraints": found}))
        return
    table = Table(
        "constraint", "tokens", "compile, ms", "mask, us (median)", "95 %", "most", "set logits on the host, us",
        title=f"vocabulary of {grammars.vocab:,}, made ready in {prepared:.1f} s; median of all masks {median:.0f} us",
    )  # fmt: skip
    for name, of in found.items():
        table.add_row(
            name, f"{of['tokens']:,}", f"{of['compile_ms']:.1f}", f"{of['median_us']:.0f}", f"{of['p95_us']:.0f}",
            f"{of['most_us']:.0f}", f"{of['apply_us']:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
