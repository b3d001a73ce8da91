"""The options that say which model runs and how tokens are drawn, for every command that generates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli.files import readable_file
from phases.cli.screen import loading_bar, tell

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.generator import Generator
    from phases.request import RowRequest, SamplingParams
    from statemachine import Machine

SAMPLING, MODEL, OUTPUT = "Sampling (what is not given comes from the checkpoint)", "Model", "Output"


class Quantization(StrEnum):
    """How weights are kept, by the names of the command line."""

    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"
    INT4 = "int4"

    @property
    def option(self) -> str | None:
        """What `gpu.load_engine` is given."""
        return None if self is Quantization.NONE else self.value


Messages = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='A chat as JSON: [{"role": "user", "content": "..."}, ...].', exists=True,
                 dir_okay=False, callback=readable_file),
]  # fmt: skip
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it stands, untemplated.")]
Model = Annotated[
    str | None,
    typer.Option(help="A checkpoint folder or Hugging Face hub id.", show_default="the bundled demo model",
                 rich_help_panel=MODEL),
]  # fmt: skip
Engine = Annotated[
    str,
    typer.Option(
        help="Which engine computes: auto is the fastest that runs here and has what is asked for, and says which that "
        "is and why. phasewalk doctor lists all.",
        rich_help_panel=MODEL,
    ),
]
Decode = Annotated[
    str | None,
    typer.Option(
        help="How the engine decodes, if it has several ways: rows alone, or together, which pays from 16 rows on "
        "(numpy); per-op or persistent (cuda); whole, or fitted to the rows and lengths at hand (tensorrt).",
        show_default="its choice",
        rich_help_panel=MODEL,
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A plan that phasewalk build made, instead of one of its own (tensorrt).",
                 exists=True, dir_okay=False, rich_help_panel=MODEL),
]  # fmt: skip
Quantize = Annotated[
    Quantization,
    typer.Option(
        help="Weights as they are, or of fewer bits, so that a token reads fewer bytes: int8 or fp8 (cuda), int8 or "
        "int4 (onnx). phasewalk perplexity tells what that costs.",
        rich_help_panel=MODEL,
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="What phasewalk export made of the model, for the engine onnx.",
        show_default="its own, in the user's cache folder",
        rich_help_panel=MODEL,
    ),
]
PromptCache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep what prompts begin with here, so that no other run need compute it again.",
        file_okay=False,
        rich_help_panel=MODEL,
    ),
]
PromptCacheLimit = Annotated[
    str, typer.Option(metavar="SIZE", help="What that folder may take, such as 500 MB.", rich_help_panel=MODEL)
]
LIMIT = "4 GB"  # of the prompt cache's folder
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME=PATH",
        help="Load a LoRA adapter (a folder of PEFT) by a name, or a bundled one: pirate. Several times for several.",
        rich_help_panel=MODEL,
    ),
]
UseLora = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The adapter of whatever names none; --lora loads it.", show_default="none",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
RecordedLora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME=PATH",
        help="Where an adapter of the record is now.",
        show_default="where it was when recorded",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse a model whose generation_config.json asks for what is not honoured; else that is a warning.",
        rich_help_panel=MODEL,
    ),
]
Capacity = Annotated[
    int | None, typer.Option(min=2, help="Tokens that prompt and output may have together.", rich_help_panel=MODEL)
]
MaxPrefillTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens of prompts that one step feeds at most: how long Ctrl-C may have to wait. It changes no token.",
        show_default="512; 2048 on a device",
        rich_help_panel=MODEL,
    ),
]
Temperature = Annotated[float | None, typer.Option(min=0, help="0 is greedy.", rich_help_panel=SAMPLING)]
TopK = Annotated[
    int | None, typer.Option(min=0, help="Draw among the k likeliest tokens; 0 is off.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Draw among the likeliest that reach this mass; 1 is off.",
                 rich_help_panel=SAMPLING),
]  # fmt: skip
MinP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Draw among those this likely beside the likeliest; 0 is off.",
                 rich_help_panel=SAMPLING),
]  # fmt: skip
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.", rich_help_panel=SAMPLING)]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="End after so many tokens.", rich_help_panel=SAMPLING)]
MinNewTokens = Annotated[
    int | None, typer.Option(min=0, help="Do not stop before so many tokens.", rich_help_panel=SAMPLING)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End where the output comes to hold this; several times for several.",
        rich_help_panel=SAMPLING,
    ),
]
KeepStop = Annotated[
    bool | None, typer.Option("--keep-stop", help="Leave what --stop found in the text.", rich_help_panel=SAMPLING)
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Above 1: less of what prompt and output hold; 1 is off.", rich_help_panel=SAMPLING),
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Above 0: less of what the output holds; 0 is off.", rich_help_panel=SAMPLING)
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Above 0: the less of it the oftener the output holds it; 0 is off.", rich_help_panel=SAMPLING),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(min=0, help="Never so many tokens twice in the same order; 0 is off.", rich_help_panel=SAMPLING),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=BIAS",
        help="Make a token likelier or less likely; several times for several.",
        rich_help_panel=SAMPLING,
    ),
]
Allow = Annotated[
    list[int] | None,
    typer.Option(metavar="ID", help="Draw only this token, and others so named.", rich_help_panel=SAMPLING),
]
Forbid = Annotated[
    list[int] | None,
    typer.Option(metavar="ID", help="Never draw this token; several times for several.", rich_help_panel=SAMPLING),
]
Samples = Annotated[
    int | None, typer.Option("-n", min=1, help="Continue the prompt so many times.", rich_help_panel=SAMPLING)
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=100,
        metavar="N",
        help="Also tell each token's log-probability, and the N likeliest.",
        rich_help_panel=OUTPUT,
    ),
]
PromptLogprobs = Annotated[
    int | None,
    typer.Option(min=0, max=100, metavar="N", help="The same for the prompt.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True, slots=True)
class Loading:
    """What the command line says of the model to load."""

    model: str | None
    engine: str
    machine: "Machine[Generation]"
    strict: bool = False
    capacity: int | None = None
    decode: str | None = None
    quantize: Quantization = Quantization.NONE
    export: Path | None = None
    plan: Path | None = None
    prompt_cache: Path | None = None
    prompt_cache_limit: str = LIMIT
    max_prefill_tokens: int | None = None
    lora: Sequence[str] = ()
    use_lora: str | None = None

    @contextmanager
    def generator(self, *, max_batch: int) -> Iterator["Generator"]:
        """Load it, with a bar if that takes long, and close it at the end."""
        from phases.generator import Generator

        adapters = adapters_of(self.lora, self.use_lora)
        engine = choose_engine(
            self.engine, self.model, decode=self.decode, quantize=[self.quantize], export=self.export, plan=self.plan,
            adapters=len(adapters) or None,
        )  # fmt: skip
        with loading_bar(self.model or "the demo model") as progress:
            generator = Generator.from_pretrained(
                self.model, engine, max_batch=max_batch, capacity=self.capacity, strict=self.strict, progress=progress,
                decode=self.decode, quantize=self.quantize.option, export=self.export, plan=self.plan,
                machine=self.machine, adapters=adapters, use_lora=self.use_lora, prompt_cache_dir=self.prompt_cache,
                prompt_cache_dir_limit=self.prompt_cache_limit, max_prefill_tokens=self.max_prefill_tokens,
            )  # fmt: skip
        with generator:
            yield generator


def adapters_of(lora: Sequence[str], use_lora: str | None = None) -> dict[str, str | Path | None]:
    """What --lora names: folders by names, and bundled adapters; --use-lora loads one of these, too."""
    from phases.lora import bundled_adapters

    found: dict[str, str | Path | None] = {}
    for words in lora:
        name, given, path = words.partition("=")
        if not name or (given and not path) or (not given and name not in bundled_adapters()):
            raise typer.BadParameter(
                f"{words!r} is no NAME=PATH, and no bundled adapter ({', '.join(bundled_adapters())})",
                param_hint="--lora",
            )
        if name in found:
            raise typer.BadParameter(f"two adapters are called {name!r}", param_hint="--lora")
        found[name] = path or None
    if use_lora is not None and use_lora not in found:
        if use_lora not in bundled_adapters():
            raise typer.BadParameter(
                f"{use_lora!r} names no adapter: --lora {use_lora}=PATH loads one, and "
                f"{', '.join(bundled_adapters())} is bundled",
                param_hint="--use-lora",
            )
        found[use_lora] = None
    return found


def check_engine(engine: str) -> None:
    """Refuse an engine that there is not, or not here."""
    from gpu import refused_engine

    if (refused := refused_engine(engine)) is not None:
        raise typer.BadParameter(refused)


def choose_engine(
    engine: str,
    model: str | None,
    *,
    decode: str | None = None,
    quantize: Sequence[Quantization] = (),
    export: Path | None = None,
    plan: Path | None = None,
    adapters: int | None = None,
) -> str:
    """Give the engine to load: what was named, or what "auto" comes to, which is told on stderr in a line."""
    if engine != "auto":
        return engine
    from gpu import choose_engine
    from phases.generator import DEMO_MODEL

    kinds = [kind.option for kind in quantize]
    model = model or str(DEMO_MODEL)
    chosen = choose_engine(model, quantize=kinds, decode=decode, export=export, plan=plan, adapters=adapters)
    tell(str(chosen))
    return chosen.name


def sampling_params(*, logit_bias: Sequence[str] = (), **given: Any) -> "SamplingParams":
    """Sampling parameters of what was given; what they refuse is a wrong command line."""
    from phases.errors import RequestError
    from phases.request import SamplingParams

    values: dict[str, Any] = {
        name: tuple(value) or None if isinstance(value, list) else value for name, value in given.items()
    }
    try:
        return SamplingParams(logit_bias=dict(map(_bias, logit_bias)) or None, **values)
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error


def _bias(words: str) -> tuple[int, float]:
    token, _, bias = words.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise typer.BadParameter(f"{words!r} is no ID=BIAS, as in 17=-5", param_hint="--logit-bias") from None


def chat_of(messages: Path) -> "RowRequest":
    """The chat that stands in a file."""
    import json

    from phases.request import RowRequest

    try:
        value = json.loads(messages.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{messages} is not JSON: {error}", param_hint="--messages") from error
    if not isinstance(value, list) or not value:
        raise typer.BadParameter(
            f'{messages} holds no chat: expected [{{"role": "user", "content": "..."}}, ...]', param_hint="--messages"
        )
    return RowRequest(messages=tuple(value))
