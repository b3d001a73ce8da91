"""phasewalk perplexity: how well a model foretells a text, and what quantised weights cost of that."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli import options
from phases.cli.files import readable_file
from phases.cli.options import Quantization
from phases.cli.screen import loading_bar, print_json, shown, stdout, token_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from phases.generator import Generator
    from phases.perplexity import Perplexity

TEXT, MEASUREMENT = "Text", "Measurement"
HELD_OUT = "held_out.txt"  # in a model's folder, a text a line


def perplexity(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Texts in UTF-8, each fed on its own; the figures are of all.",
                       show_default="held_out.txt in the model's folder, a text a line: the bundled model has one",
                       exists=True, dir_okay=False),
    ] = None,
    own_text: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Instead: N tokens that the first model draws itself, at temperature 1.",
                     rich_help_panel=TEXT),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what it draws.", rich_help_panel=TEXT)] = 0,
    model: options.Model = None,
    engine: options.Engine = "auto",
    decode: options.Decode = None,
    quantize: Annotated[
        list[Quantization] | None,
        typer.Option(help="Weights as they are, or int8 or fp8 (cuda), int8 or int4 (onnx); several are compared, a "
                          "row each.",
                     show_default="none", rich_help_panel=options.MODEL),
    ] = None,
    export: options.Export = None,
    plan: options.Plan = None,
    window: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens that the model sees at most, the one to be foretold included.",
                     show_default="512, or the model's positions", rich_help_panel=MEASUREMENT),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="How far windows lie apart; less gives tokens more context, and takes longer.",
                     show_default="half a window", rich_help_panel=MEASUREMENT),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(min=1, help="Windows that are fed together; it changes no figure but the time.",
                     rich_help_panel=MEASUREMENT),
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:  # fmt: skip
    """Measure how well a model foretells a text.

    phasewalk perplexity

    phasewalk perplexity book.txt --model DIR --window 2048

    phasewalk perplexity --engine cuda --quantize none --quantize int8 --quantize fp8

    phasewalk perplexity --engine onnx --quantize none --quantize int8 --quantize int4

    phasewalk perplexity --model DIR --own-text 4000 --quantize none --quantize int8

    The model is fed the text token by token. Before each it says how likely every
    token is to come next; minus the logarithm of what it says of the one that
    comes is its surprise. The mean in bits is what a token costs to write down
    with this model's help, and perplexity is 2 to that power: the model might as
    well have guessed among so many tokens, all alike. 1 is a text known by heart.

    A text longer than a window is cut into windows that overlap. The first one
    scores all its tokens but the first, however little stands before them; each
    later one scores only the tokens that it adds, so at least window less stride
    tokens stand before these.

    Rows after the first are compared with it on the same tokens: the change
    of perplexity, and how often both hold the same token likeliest. On a text
    that the first model drew, the difference in bits is an estimate of the
    Kullback-Leibler divergence of the other model from it.
    """
    from gpu import ModelConfig, resolve_checkpoint
    from phases.generator import DEMO, DEMO_MODEL, Generator
    from phases.perplexity import WINDOW, perplexity_of

    options.check_engine(engine)
    if files and own_text is not None:
        raise typer.BadParameter("the model draws its text, or reads FILEs: give one of them", param_hint="--own-text")
    texts, called = [_text_of(file) for file in files or ()], ", ".join(map(str, files or ()))
    folder = resolve_checkpoint(DEMO_MODEL if model is None else model)
    if own_text is not None:
        called = "the model's own"
    elif not texts:
        texts, called = _held_out(folder), f"{HELD_OUT} of {model or DEMO}"
    positions = ModelConfig.from_folder(folder).max_positions
    if window is not None and window > positions:
        raise typer.BadParameter(f"the model has {positions} positions, no window of {window}", param_hint="--window")
    window = window or min(WINDOW, positions)

    measured: dict[str, Perplexity] = {}
    ids: list[Sequence[int]] = []
    kinds = list(dict.fromkeys(quantize or [Quantization.NONE]))
    engine = options.choose_engine(engine, model, decode=decode, quantize=kinds, export=export, plan=plan)
    for kind in kinds:
        with loading_bar(model or "the demo model") as progress:
            generator = Generator.from_pretrained(
                model,
                engine,
                max_batch=rows,
                capacity=window if export is None else None,  # an export has one of its own, as a rule the usual one
                progress=progress,
                decode=decode,
                quantize=kind.option,
                export=export,
                plan=plan,
            )
        with generator:
            environment = generator.engine.environment()
            weights = str(environment.get("quantize") or environment["dtype"])
            if own_text is not None and not ids:
                ids = _drawn(generator, own_text, window, seed)
            with token_bar(f"{weights} weights") as watch:
                measured[weights] = perplexity_of(
                    generator.engine,
                    ids or [_ids(generator, text) for text in texts],
                    window=window,
                    stride=stride,
                    watch=watch,
                )
    about = {
        "engine": environment["engine"],
        "text": called,
        "window": window,
        "stride": stride or window // 2,
    }
    if as_json:
        print_json(about | {"rows": list(_rows(measured))})
    else:
        _print(about, list(_rows(measured)))


def _text_of(file: Path) -> str:
    """What stands in a file, if it is text."""
    readable_file(file)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file} is no UTF-8 text: {error}", param_hint="FILE") from error
    if "\0" in text:
        raise typer.BadParameter(f"{file} is no text: it holds a NUL", param_hint="FILE")
    if not text.strip():
        raise typer.BadParameter(f"{file} is empty: expected a text", param_hint="FILE")
    return text


def _held_out(folder: Path) -> list[str]:
    """The texts that come with a model."""
    file = folder / HELD_OUT
    if not file.is_file():
        raise typer.BadParameter(
            f"which text? {folder} has no {HELD_OUT}: name a FILE, or have the model draw one with --own-text N"
        )
    return [line for line in _text_of(file).splitlines() if line.strip()]


def _ids(generator: "Generator", text: str) -> tuple[int, ...]:
    """A text as the tokenizer has it, with what that puts before every text."""
    from phases.request import RowRequest

    return generator.tokenizer.encode(RowRequest(prompt=text, raw=True))


def _drawn(generator: "Generator", tokens: int, window: int, seed: int) -> "list[Sequence[int]]":
    """Texts that the model draws: each begins with what the tokenizer puts before every text, or with a line break."""
    from phases.perplexity import own_texts

    with token_bar("drawing a text") as watch:
        start = _ids(generator, "\n")[0]
        return [*own_texts(generator.engine, tokens, start=start, length=window, seed=seed, watch=watch)]


def _rows(measured: "dict[str, Perplexity]") -> "Iterator[dict[str, Any]]":
    """The figures of each model, beside those of the first."""
    first = next(iter(measured.values()))
    for weights, found in measured.items():
        yield {
            "weights": weights,
            "tokens": found.tokens,
            "perplexity": found.perplexity,
            "bits_per_token": found.bits,
            "change": found.perplexity / first.perplexity - 1,
            "same_likeliest": found.same_likeliest(first),
            "seconds": found.seconds,
        }


def _print(about: "dict[str, Any]", rows: "list[dict[str, Any]]") -> None:
    from rich.table import Table

    title = f"{shown(about['text'])}; engine {about['engine']}, window {about['window']}, stride {about['stride']}"
    table = Table("weights", title=title, title_justify="left")
    for column in ("tokens", "perplexity", "bits a token", "change", "same likeliest", "seconds"):
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    for number, row in enumerate(rows):
        compared = (f"{row['change']:+.2%}", f"{row['same_likeliest']:.1%}") if number else ("", "")
        perplexity = f"{row['perplexity']:,.{4 if row['perplexity'] < 1000 else 1}f}"
        table.add_row(
            row["weights"], f"{row['tokens']:,}", perplexity, f"{row['bits_per_token']:.4f}", *compared,
            f"{row['seconds']:.1f}",
        )  # fmt: skip
    stdout().print(table)
