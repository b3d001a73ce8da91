"""Train the bundled demo model from nothing: its text, its tokenizer, its weights, its scores.

    python examples/train_demo_model.py --output my_model          # then: phasewalk run --model my_model "Hello"
    python examples/train_demo_model.py --steps 100 --output /tmp/try   # a quick look; the model will babble
    python examples/train_demo_model.py --evaluate phases/demo_model    # scores of a stored model
    python examples/train_demo_model.py --evaluate phases/demo_model --golden golden.json
    python examples/train_demo_model.py --evaluate phases/demo_model --held-out text.txt  # for phasewalk perplexity

The text comes from the grammar in `demo_text.toml`; no data set is read. The result is a folder in Hugging Face format:
a small Llama (tied embeddings, grouped-query attention) in float16, a byte-level BPE tokenizer whose digits are single
tokens, a chat template. The loss counts the assistant's tokens only, and plain stories in full. All scores are measured
on the stored model, after the rounding to float16, on prompts that `demo_text.is_held_out` keeps out of training.
It takes a few minutes on a GPU and about 80 minutes on two CPU cores.

The same seed gives the same text, tokenizer and order of training on every machine. It gives the same weights, bit for
bit, on the same kind of device with the same torch version and number of threads; elsewhere sums are rounded in
another order, so weights and the wording of stories differ a little, and the scores should not.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace

import torch
from demo_text import ABILITIES, HELD_OUT, Chat, Turn, chats, draw, held_out_stories
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPE = {
    "vocab_size": 1536,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}
STEPS, ROWS, ROW_LENGTH = 2600, 16, 512  # 21.3 million tokens
TRAINING_CHATS = 300_000  # a few more than so many tokens hold
HELD_OUT_STORIES, HELD_OUT_SEED = 64, 2025
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 4e-3, 100, 0.1

SPECIAL = ("<|pad|>", "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role not in ("system", "user", "assistant") -%}
    {{- raise_exception("unknown role " ~ message.role ~ ": expected system, user or assistant") -}}
  {%- endif -%}
  {{- "<|" ~ message.role ~ "|>" -}}
  {%- if message.content is string -%}
    {{- message.content | trim -}}
  {%- else -%}
    {%- for part in message.content if part.type == "text" -%}{{- part.text -}}{%- endfor -%}
  {%- endif -%}
  {{- "<|end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}
"""

console = Console(stderr=True)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the model's own text; all 256 bytes are tokens, so every text can be written."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\d| ?[^\W\d_]+| ?[^\s\w]+|\s+(?!\S)|\s+|_+")  # one digit, one word with its space, marks, spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = (message["content"] for chat in itertools.islice(chats(seed), 20_000) for message in chat.messages())
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=SHAPE["max_position_embeddings"],
    )


# ------------------------------------------------------------------------------------------------ batches


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[Chat]) -> Iterator[tuple[list[int], list[bool]]]:
    """Turn chats into token ids, and for each id tell whether the model shall learn to say it."""
    pieces: list[tuple[int, str, bool]] = []  # chat, text, learned
    for index, chat in enumerate(batch):
        pieces += [(index, chat.plain, True)] if chat.plain else []
        for message in chat.messages():
            learned = message["role"] == "assistant"
            pieces += [(index, f"<|{message['role']}|>", False), (index, message["content"] + "<|end|>", learned)]
        pieces += [(index, "<|end|>", True)] if chat.plain else []
    ids = tokenizer([text for _, text, _ in pieces], add_special_tokens=False)["input_ids"]
    for _, group in itertools.groupby(zip(pieces, ids, strict=True), key=lambda item: item[0][0]):
        chat_ids, chat_learned = [SPECIAL.index("<|bos|>")], [False]
        for (_, _, learned), piece_ids in group:
            chat_ids += piece_ids
            chat_learned += [learned] * len(piece_ids)
        yield chat_ids, chat_learned


def rows(tokenizer: PreTrainedTokenizerFast, stream: Iterator[Chat]) -> Iterator[tuple[list[int], list[bool]]]:
    """Pack whole chats into rows of one length; of 64 open rows the fullest that still has room takes the next chat."""
    still_open: list[tuple[list[int], list[bool]]] = [([], []) for _ in range(64)]
    while True:
        for ids, learned in encode(tokenizer, list(itertools.islice(stream, 1000))):
            if len(ids) > ROW_LENGTH:
                continue
            fitting = [row for row in still_open if len(row[0]) + len(ids) <= ROW_LENGTH]
            if not fitting:
                full = max(still_open, key=lambda row: len(row[0]))
                still_open.remove(full)
                padding = ROW_LENGTH - len(full[0])
                yield full[0] + [0] * padding, full[1] + [False] * padding
                fitting = [([], [])]
                still_open += fitting
            best = max(fitting, key=lambda row: len(row[0]))
            best[0].extend(ids)
            best[1].extend(learned)


# ------------------------------------------------------------------------------------------------ training


def learning_rate(step: int, steps: int) -> float:
    """Rise linearly, then fall on a half cosine to nothing."""
    warmup = min(WARMUP_STEPS, steps // 10 + 1)
    rise, fall = (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * min(rise, 1.0) * fall


def loss_of(model: LlamaForCausalLM, ids: Tensor, learned: Tensor) -> Tensor:
    """Mean cross-entropy of the learned tokens; the output layer runs on their positions only."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    learned = learned[:, 1:]
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][learned]), ids[:, 1:][learned])


def train(tokenizer: PreTrainedTokenizerFast, device: torch.device, steps: int, seed: int) -> LlamaForCausalLM:
    """Train a fresh model; every eighth step has rows of double length, so that long chats work too."""
    torch.manual_seed(seed)
    special_ids = {"bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0}
    config = LlamaConfig(**SHAPE, **special_ids, tie_word_embeddings=True, rms_norm_eps=1e-5, initializer_range=0.05)
    model = LlamaForCausalLM(config).to(device)
    console.print(f"{model.num_parameters():,} parameters, {steps * ROWS * ROW_LENGTH / 1e6:.1f} M tokens, on {device}")
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    stream = rows(tokenizer, chats(seed + 1))
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    model.train()
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            batch = list(itertools.islice(stream, ROWS))
            ids = torch.tensor([row[0] for row in batch])
            learned = torch.tensor([row[1] for row in batch])
            if step % 8 == 7:
                ids, learned = ids.view(-1, 2 * ROW_LENGTH), learned.view(-1, 2 * ROW_LENGTH)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            loss = loss_of(model, ids.to(device), learned.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0 or step == steps - 1:
                progress.update(task, completed=step + 1, description=f"loss {loss.item():.4f}")
                if not console.is_terminal and step % 200 == 0:
                    console.print(f"step {step:5d}  loss {loss.item():.4f}", highlight=False)
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder in Hugging Face format, with weights in float16 and settings that give sensible text."""
    model = model.to(torch.float16)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=5, pad_token_id=0, do_sample=True, temperature=0.5, top_k=40, max_new_tokens=200
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------ scores


def load(folder: Path, device: torch.device) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load the stored model, its rounded weights widened to float32."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval(), tokenizer


@torch.inference_mode()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[tuple[str, bool]]:
    """Answer each prompt greedily; return the texts, and whether each ended by itself."""
    results: list[tuple[str, bool]] = []
    for start in range(0, len(prompts), 100):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + 100]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True,
            padding=True, tokenizer_kwargs={"padding_side": "left"},
        ).to(model.device)  # fmt: skip
        length = inputs["input_ids"].shape[1]
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, do_sample=False, temperature=None, top_k=None, max_new_tokens=500)[:, length:]
        ended = (output == tokenizer.eos_token_id).any(dim=1).tolist()
        results += zip(tokenizer.batch_decode(output, skip_special_tokens=True), ended, strict=True)
    return results


def is_right(turn: Turn, text: str, ended: bool) -> bool:
    """Tell whether an answer is right: a story has 3 to 7 sentences and all that was asked for; others are exact."""
    if turn.mentions:
        return ended and 3 <= text.count(".") <= 7 and all(word.lower() in text.lower() for word in turn.mentions)
    return ended and text == turn.assistant


def evaluate(folder: Path, device: torch.device, count: int, show: int = 3) -> None:
    """Print the answers to the twenty held-out prompts, and a table of scores on random held-out prompts."""
    model, tokenizer = load(folder, device)
    out = Console()
    for turn, (text, ended) in zip(HELD_OUT, answers(model, tokenizer, [t.user for t in HELD_OUT]), strict=True):
        out.print(f"{'right' if is_right(turn, text, ended) else 'WRONG'}  {turn.user}\n       {text}", markup=False)
    table = Table("ability", "right", "ended", "of", title="held-out prompts, greedy")
    rng = random.Random(2024)
    for ability in ABILITIES:
        turns = list({turn.user: turn for turn in (draw(rng, ability, held_out=True) for _ in range(count))}.values())
        found = list(zip(turns, answers(model, tokenizer, [turn.user for turn in turns]), strict=True))
        wrong = [(turn, text) for turn, (text, ended) in found if not is_right(turn, text, ended)]
        ended = sum(ended for _, (_, ended) in found)
        table.add_row(ability, f"{1 - len(wrong) / len(turns):.1%}", f"{ended / len(turns):.1%}", str(len(turns)))
        for turn, text in wrong[:show]:
            out.print(f"missed: {turn.user}\n   said {text}\n   not  {turn.assistant}", markup=False)
    out.print(table)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    out.print(f"sha256 of model.safetensors: {digest}", soft_wrap=True)


@torch.inference_mode()
def golden(folder: Path, path: Path) -> None:
    """Write greedy ids and the five largest logits of each of the first eight steps, for three prompts, from torch."""
    model, tokenizer = load(folder, torch.device("cpu"))
    records: list[dict[str, Any]] = []
    for turn in (HELD_OUT[0], HELD_OUT[8], HELD_OUT[13]):
        messages = [{"role": "user", "content": turn.user}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        prompt, top = list(ids), []
        while ids[-1] != tokenizer.eos_token_id and len(ids) < 300:
            logits = model(torch.tensor([ids])).logits[0, -1]
            best = logits.topk(5)
            if len(top) < 8:
                top.append([[int(i), round(float(v), 5)] for i, v in zip(best.indices, best.values, strict=True)])
            ids = [*ids, int(best.indices[0])]
        records.append({"prompt": turn.user, "prompt_ids": prompt, "new_ids": ids[len(prompt) :], "top_logits": top})
    path.write_text(json.dumps(records, indent=1) + "\n")


def write_held_out(path: Path, seed: int) -> None:
    """Write stories that are nowhere in the training text, one a line: what `phasewalk perplexity` measures on."""
    stories = held_out_stories(HELD_OUT_STORIES, HELD_OUT_SEED, itertools.islice(chats(seed), TRAINING_CHATS))
    path.write_text("".join(f"{story}\n" for story in stories), encoding="utf-8")


def main() -> None:
    """Read the command line, train, store, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("demo_model"), help="folder to write (default: demo_model)")
    add("--device", default="auto", help="cpu, cuda, mps ... (default: a GPU where there is one)")
    add("--steps", type=int, default=STEPS, help=f"training steps of {ROWS * ROW_LENGTH} tokens (default: {STEPS})")
    add("--seed", type=int, default=2, help="seed of the text, the first weights and the order (default: 2)")
    add("--evaluate", type=Path, metavar="FOLDER", help="train nothing: score the model stored in this folder")
    add("--count", type=int, default=300, help="random held-out prompts for each ability (default: 300)")
    add("--golden", type=Path, metavar="FILE", help="also write greedy ids and logits of three prompts to this file")
    add("--held-out", type=Path, metavar="FILE", help="also write stories that the training text does not hold")
    options = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if options.device == "auto" else options.device)
    folder: Path = options.evaluate or options.output
    if not options.evaluate:
        began = time.perf_counter()
        tokenizer = train_tokenizer(options.seed)
        model = train(tokenizer, device, options.steps, options.seed)
        save(model, tokenizer, folder)
        console.print(f"trained in {(time.perf_counter() - began) / 60:.1f} minutes; stored in {folder}")
    evaluate(folder, device, options.count)
    if options.golden:
        golden(folder, options.golden)
    if options.held_out:
        write_held_out(options.held_out, options.seed)


if __name__ == "__main__":
    sys.exit(main())
