"""Train the bundled LoRA adapter: it lets the demo model talk like a pirate, and leaves what it says as it is.

    python examples/train_demo_adapter.py --output my_adapter
    phasewalk run --lora mine=my_adapter --use-lora mine "Tell me a story about a fox."

It learns from the text of the demo model (`demo_text.py`), whose answers are put in a pirate's words. The result is a
folder in PEFT's format, in float16: a third of a megabyte beside the five of the model. It takes half an hour at most
on one CPU core. The same seed gives the same adapter on the same kind of machine with the same version of torch.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from demo_text import Chat, chats
from peft import LoraConfig, get_peft_model
from train_demo_model import ROW_LENGTH, load, loss_of, rows

MODEL = Path(__file__).parents[1] / "phases" / "demo_model"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16
STEPS, ROWS, LEARNING_RATE = 300, 8, 4e-3
WORDS = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "was": "were", "friend": "matey",
    "friends": "mateys", "yes": "aye", "hello": "ahoy", "of": "o'", "and": "an'", "them": "'em",
}  # fmt: skip
PATTERN = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def pirate(text: str) -> str:
    """Put an answer in a pirate's words."""

    def said(found: re.Match[str]) -> str:
        word = WORDS[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return f"Arr! {PATTERN.sub(said, text)}"


def pirates(seed: int) -> Iterator[Chat]:
    """Yield the demo model's chats, answered by a pirate; plain texts, which nobody answers, are left out."""
    for chat in chats(seed):
        if not chat.plain:
            yield replace(chat, turns=[replace(turn, assistant=pirate(turn.assistant)) for turn in chat.turns])


def main() -> None:
    """Read the command line, train and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("pirate"), help="folder to write (default: pirate)")
    add("--steps", type=int, default=STEPS, help=f"steps of {ROWS * ROW_LENGTH} tokens (default: {STEPS})")
    add("--seed", type=int, default=7, help="seed of the text and of the first numbers (default: 7)")
    options = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    base, tokenizer = load(MODEL, torch.device("cpu"))
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES, task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "phasewalk's demo model"  # not where it lies on this machine
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.0)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    stream = rows(tokenizer, pirates(options.seed))
    model.train()
    for step in range(options.steps):
        batch = list(itertools.islice(stream, ROWS))
        ids, learning = (torch.tensor([row[part] for row in batch]) for part in (0, 1))
        loss = loss_of(model.base_model.model, ids, learning)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        fall.step()
        if step % 20 == 0 or step == options.steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    model.to(torch.float16).save_pretrained(options.output)
    (options.output / "README.md").unlink(missing_ok=True)
    (options.output / "adapter_model.safetensors").chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
