"""The panels of a generation: its text, and what the engine holds."""

from textual.content import Content

from phases.debugger.generation_view import GenerationView
from phases.debugger.memory import Buffer, CacheRow
from phases.debugger.panel import Panel
from phases.debugger.styled import DIM, STRONG, Part, bar_of, lines, tail

SHORT_TYPES = {"float": "f", "uint": "u", "int": "i"}


class TextPanel(Panel[GenerationView]):
    """The end of the text so far, the last token marked."""

    def title(self, view: GenerationView) -> str:
        row = f" of row {view.row}" if view.rows > 1 else ""
        drawn = ", the last one drawn but not checked yet" if view.text.pending else ""
        return f"text{row}: {view.tokens} tokens{drawn}"

    def draw(self, view: GenerationView, width: int, height: int) -> Content:
        text = view.text
        last = "bold auto on $warning" if text.pending else "bold auto on $accent"
        if not text.prompt:
            return lines([("Tokenize has not run yet", DIM)])
        parts = [(tail(text.prompt, 2000) + "\n", DIM), (tail(text.before, 8000), "$foreground")]
        if text.last:
            parts.append((text.last.replace("\n", "⏎\n"), last))
        if text.recorded:
            parts += [("\nrecorded: ", DIM), (text.recorded, DIM)]
        return Content("\n").join(lines(parts).wrap(width)[-height:])


class BuffersPanel(Panel[GenerationView]):
    """The engine's buffers, and how full the KV cache is."""

    def title(self, view: GenerationView) -> str:
        return "buffers and KV cache"

    def draw(self, view: GenerationView, width: int, height: int) -> Content:
        made = [self._buffer(buffer, width) for buffer in view.buffers] or [[("buffers are not recorded", DIM)]]
        used = [row for row in view.cache if row.owner]
        free = len(view.cache) - len(used)
        room = max(1, height - len(made))
        shown = sorted(used, key=lambda row: not row.shown)[
            : room if room >= len(used) + bool(free) else max(1, room - 1)
        ]
        cache = [self._row(row, width) for row in shown]
        made = made[: max(1, height - len(cache))] + cache  # how full it is goes before where the last buffers lie
        rest = f"{len(used) - len(shown)} more in use, " if len(shown) < len(used) else ""
        if view.buffers and len(made) < height:
            made.append([(f"{rest}{free} rows free", DIM)])
        return lines(*made[:height])

    def _buffer(self, buffer: Buffer, width: int) -> list[Part]:
        shape = "x".join(map(str, buffer.shape))
        if width >= 60:
            return [
                (f"{buffer.name:<14}", "$foreground"), (f"{shape:<18}", "$text-primary"), (f"{buffer.dtype:<8}", DIM),
                (f"{buffer.address:#014x}", DIM), (f"  {buffer.value}"[: width - 54], STRONG),
            ]  # fmt: skip
        short = buffer.dtype
        for name, letter in SHORT_TYPES.items():
            short = short.replace(name, letter) if short.startswith(name) else short
        name = "kv" if buffer.name == "kv_cache" else buffer.name
        return [
            (f"{name} ", "$foreground"), (f"{shape:<{max(1, width - 19 - len(name))}}", "$text-primary"),
            (f" {short:<4}", DIM), (f"{buffer.address:x}".rjust(13), DIM),
        ]  # fmt: skip

    def _row(self, row: CacheRow, width: int) -> list[Part]:
        label, figures = f"kv {row.owner} ", f" {row.length}/{row.capacity}"
        room = max(3, width - len(label) - len(figures))
        filled = bar_of(row.length / row.capacity, room)
        style = "$accent" if row.shown else "$primary"
        return [
            (label, STRONG if row.shown else DIM),
            (filled.rstrip(" "), f"{style} on $foreground 15%"),
            (" " * (room - len(filled.rstrip(" "))), "on $foreground 15%"),
            (figures, DIM),
        ]
