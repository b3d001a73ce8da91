"""Draws a token's way through the GPU, from what the engine counts: `python diagrams/token_on_gpu.py`."""

import re
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path

from gpu import ModelConfig
from gpu.cuda.shape import Shape
from gpu.cuda.traffic import Traffic, traffic

FOLDER = Path(__file__).parent
CONTEXT = 128
LLAMA = ModelConfig.from_json(  # Llama-3.2-1B
    {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 16, "hidden_size": 2048,
        "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128_256, "tie_word_embeddings": True, "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
    }
)  # fmt: skip
DOES = {
    "qkv": "norm, Q K V, rope",
    "attention": "reads the cache",
    "output": "adds to the residual",
    "gate_up": "norm, gate and up, SwiGLU",
    "down": "adds to the residual",
}
WIDTH, LEFT = 960, 30
INNER = WIDTH - 2 * LEFT
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933 }
.small { font-size: 11px; fill: #52606d }
.title { font-weight: 600; font-size: 14px }
rect { stroke: #334e68; stroke-width: 1 }
.paper { fill: #ffffff; stroke: none }
.weights { fill: #bcccdc } .cache { fill: #f7c948 } .idle { fill: #f0f4f8 } .work { fill: #a3d9a5 }
.count { fill: #fad4d4 }
path { stroke: #334e68; fill: none; marker-end: url(#arrow) }
.zoom { stroke: #9fb3c8; stroke-dasharray: 4 3; marker-end: none }
"""


def constant(name: str) -> int:
    """Read a number of the persistent kernel where it stands."""
    kernels = files("gpu.cuda") / "kernels"
    source = (kernels / "ring.cu").read_text() + (kernels / "products.cu").read_text()
    found = re.search(rf"constexpr int {name} = (\d+)\b", source)
    assert found is not None, f"neither ring.cu nor products.cu has a number {name}"
    return int(found[1])


def step(model: ModelConfig = LLAMA, context: int = CONTEXT) -> dict[str, Traffic]:
    """Count what each kernel of a decode step of one row moves."""
    return traffic(Shape(model, 1, context), tokens=1, attended=context, ended=1)


def text(x: float, y: float, words: str, style: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" class="{style}"/>'


def arrow(*points: tuple[float, float], style: str = "") -> str:
    line = " L ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M {line}" class="{style}"/>'


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def step_to_scale() -> Iterator[str]:
    """All that a step reads, to scale; below it the kernels of one layer."""
    moved, layers = step(), LLAMA.layers
    layer = sum(moved[name].weights + moved[name].cache for name in DOES)
    whole = layer * layers + moved["head"].weights
    scale = INNER / whole
    yield text(LEFT, 28, f"What one token reads, to scale: Llama-3.2-1B after {CONTEXT} tokens, {megabytes(whole)}",
               "title", "start")  # fmt: skip
    for index in range(layers):
        x = LEFT + index * layer * scale
        yield box(x, 42, layer * scale, 36, "weights")
        yield text(x + layer * scale / 2, 65, f"{index}", "small")
    x = LEFT + layers * layer * scale
    yield box(x, 42, moved["head"].weights * scale, 36, "weights")
    yield text(x + moved["head"].weights * scale / 2, 65, f"head {megabytes(moved['head'].weights)}")
    yield text(LEFT, 96, f"embed reads one row of the table, {LLAMA.hidden * 2 / 1024:.0f} KiB", "small", "start")
    yield text(WIDTH - LEFT, 96, "sample reads the logits", "small", "end")

    at, zoomed = LEFT + 3 * layer * scale, LEFT
    yield arrow((at, 78), (LEFT, 118), style="zoom")
    yield arrow((at + layer * scale, 78), (WIDTH - LEFT, 118), style="zoom")
    least = 118.0  # pixels: so wide are the words
    sizes = {name: moved[name].weights + moved[name].cache for name in DOES}
    small = [name for name, size in sizes.items() if size / layer * INNER < least]
    rest = (INNER - least * len(small)) / sum(size for name, size in sizes.items() if name not in small)
    for name, size in sizes.items():
        width = least if name in small else size * rest
        yield box(zoomed, 118, width, 62, "cache" if name == "attention" else "weights")
        yield text(zoomed + width / 2, 136, name, "title")
        yield text(zoomed + width / 2, 153, megabytes(size))
        yield text(zoomed + width / 2, 170, DOES[name], "small", "middle") if width > least else ""
        yield text(zoomed + width / 2, 194, DOES[name], "small") if width <= least else ""
        zoomed += width
    yield text(LEFT, 214, f"one layer, {megabytes(layer)}; narrow boxes are wider than their share", "small", "start")


def one_kernel() -> Iterator[str]:
    """The persistent kernel: what one block is made of."""
    warps, finishers = constant("WARPS"), constant("FINISHERS")
    top = 262
    yield text(LEFT, top - 16, "One kernel for a whole step: a block on each multiprocessor", "title", "start")
    yield box(LEFT, top, 118, 150, "weights")
    yield text(LEFT + 59, top + 66, "weights")
    yield text(LEFT + 59, top + 84, "in the order of use", "small")
    yield box(LEFT + 153, top, 110, 42, "count")
    yield text(LEFT + 208, top + 18, "tickets")
    yield text(LEFT + 208, top + 34, "one counter for all", "small")
    yield box(LEFT + 160, top + 70, 96, 44, "work")
    yield text(LEFT + 208, top + 89, "producer")
    yield text(LEFT + 208, top + 105, "one thread", "small")
    yield arrow((LEFT + 208, top + 42), (LEFT + 208, top + 68))
    yield arrow((LEFT + 118, top + 92), (LEFT + 158, top + 92))
    ring = LEFT + 300
    for index in range(12):  # how many there are depends on the model
        row, column = divmod(index, 4)
        yield box(ring + column * 30, top + 60 + row * 24, 26, 20, "weights" if index < 9 else "idle")
    yield text(ring + 58, top + 48, "ring: places of 16 KiB")
    yield arrow((LEFT + 256, top + 92), (ring - 3, top + 92))
    consumers = ring + 166
    for index in range(warps):
        row, column = divmod(index, 4)
        yield box(consumers + column * 30, top + 70 + row * 26, 26, 22, "work")
    yield text(consumers + 58, top + 48, f"{warps} consumers multiply")
    yield text(consumers + 58, top + 62, "each its hands of every unit", "small")
    yield arrow((ring + 118, top + 92), (consumers - 3, top + 92))
    last = consumers + 176
    for index in range(finishers):
        yield box(last + index * 30, top + 82, 26, 22, "work")
    yield text(last + 43, top + 48, f"{finishers} finishers add up")
    yield text(last + 43, top + 62, "and do what comes after", "small")
    yield arrow((consumers + 118, top + 92), (last - 3, top + 92))
    yield box(last + 110, top + 70, 110, 44, "count")
    yield text(last + 165, top + 89, "finished units")
    yield text(last + 165, top + 105, "a counter a phase", "small")
    yield arrow((last + 88, top + 92), (last + 108, top + 92))
    yield arrow(
        (last + 165, top + 114), (last + 165, top + 136), (consumers + 58, top + 136), (consumers + 58, top + 124)
    )
    yield text(consumers + 116, top + 152, "all of them: the next phase may begin", "small")


def timelines() -> Iterator[str]:
    """What the memory does meanwhile, in either way."""
    phases = {"qkv": 62, "attention": 62, "output": 50, "gate_up": 250, "down": 130}
    top = 480
    yield text(LEFT, top - 24, "What the memory does (not to scale)", "title", "start")
    for name, y, gap, words in (
        ("kernel by kernel", top, 26, "the first weights of a kernel are on their way before the one before has ended"),
        ("one kernel", top + 72, 0, "the ring fills while others wait: weights come on and on"),
    ):
        yield text(LEFT, y + 20, name, "", "start")
        x = LEFT + 130.0
        for phase, width in phases.items():
            attends = phase == "attention"
            yield box(x, y, width, 30, "cache" if attends and gap else "weights")
            if attends and not gap:
                yield box(x, y, width, 14, "cache")
            yield text(x + width / 2, y + (20 if gap or not attends else 11), phase, "small")
            x += width
            if gap:
                yield box(x, y, gap, 30, "idle")
                x += gap
        yield text(LEFT + 130, y + 46, words, "small", "start")


def svg() -> str:
    """Give the whole picture."""
    height = 612
    parts = [*step_to_scale(), *one_kernel(), *timelines()]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>A token's way through the GPU</title><style>{STYLE}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<polygon points="0,0 8,4 0,8" fill="#334e68"/></marker></defs>'
    )
    return "\n".join(
        [head, f'<rect width="{WIDTH}" height="{height}" class="paper"/>', *filter(None, parts), "</svg>\n"]
    )


def export(folder: Path = FOLDER) -> None:
    """Write token_on_gpu.svg."""
    folder.joinpath("token_on_gpu.svg").write_text(svg(), encoding="utf-8")


if __name__ == "__main__":
    export()
