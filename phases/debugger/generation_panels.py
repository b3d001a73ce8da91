"""The panels of a generation: its text, the candidates for its next token, and what the engine holds."""

from textual.content import Content

from phases.debugger.distribution import Candidate, Distribution
from phases.debugger.memory import Buffer, CacheRow
from phases.debugger.panels import Panel
from phases.debugger.styled import DIM, STRONG, Part, as_many, bar_of, fitted, lines, percent, tail
from phases.debugger.view import View

SHORT_TYPES = {"float": "f", "uint": "u", "int": "i"}


class TextPanel(Panel):
    """The end of the text so far, the last token marked."""

    def title(self, view: View) -> str:
        row = f" of row {view.row}" if view.rows > 1 else ""
        drawn = ", the last one drawn but not checked yet" if view.text.pending else ""
        return f"text{row}: {view.tokens} tokens{drawn}"

    def draw(self, view: View, width: int, height: int) -> Content:
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


class CandidatesPanel(Panel):
    """What the next token is, or was, drawn from."""

    def title(self, view: View) -> str:
        shown = view.distribution
        if isinstance(shown, str):
            return "candidates"
        if shown.drawn is not None:
            return f"token {shown.place + 1} was drawn from"
        return f"candidates for token {shown.place + 1}" + (", forced" if shown.forced is not None else "")

    def draw(self, view: View, width: int, height: int) -> Content:
        shown = view.distribution
        if isinstance(shown, str):
            return lines([(shown, DIM)])
        head: list[list[Part]] = []
        if shown.spread:
            spread = shown.spread
            head.append([(as_many([*view.sampling, f"kept {shown.kept} of {shown.vocab}"], width), DIM)])
            figures = [
                f"top1 {spread.top1:.3f}",
                f"margin {spread.margin:.3f}",
                f"entropy {spread.entropy:.2f}",
                "bits",
            ]
            head.append([(as_many(figures, width), DIM)])
            head.append([("token".rjust(7), "$foreground 35%"), ("model  drawn".rjust(width - 7), "$foreground 35%")])
        else:
            head.append([("the largest logits; the record holds no others", DIM)])
        room = height - len(head)
        marked = {shown.drawn, shown.forced} - {None}
        listed = list(shown.candidates[:room])
        hidden = [candidate for candidate in shown.candidates[room:] if candidate.token_id in marked]
        listed[len(listed) - len(hidden) :] = hidden
        return lines(*head, *(self._line(view, shown, candidate, width) for candidate in listed))

    def _line(self, view: View, shown: Distribution, candidate: Candidate, width: int) -> list[Part]:
        marked = candidate.token_id in (shown.drawn, shown.forced)
        name_width = max(10, min(18, width // 3))
        name = fitted(view.names.get(candidate.token_id, ""), name_width)
        mark = ("▶ " if marked else "  ", "bold $accent")
        if candidate.probability is None:
            return [mark, (name, STRONG if marked else "$foreground"), (f" logit {candidate.logit:.3f}", DIM)]
        fate = {"temperature": "temp"}.get(candidate.removed, candidate.removed) or percent(candidate.chance)
        room = max(3, width - name_width - 2 - 1 - 6 - 1 - 6)
        bar = bar_of(candidate.probability, room)
        if candidate.removed:
            return [
                mark, (name.rstrip(), "strike $foreground 45%"), (" " * (name_width - len(name.rstrip()) + 1), ""),
                (bar, "$foreground 30%"), (f"{percent(candidate.probability):>6}", "$foreground 45%"),
                (f" {fate:>6}", "$text-error"),
            ]  # fmt: skip
        return [
            mark, (name + " ", STRONG if marked else "$foreground"), (bar, "$accent" if marked else "$primary"),
            (f"{percent(candidate.probability):>6}", DIM), (f" {fate:>6}", "$text-success"),
        ]  # fmt: skip


class BuffersPanel(Panel):
    """The engine's buffers, and how full the KV cache is."""

    def title(self, view: View) -> str:
        return "buffers and KV cache"

    def draw(self, view: View, width: int, height: int) -> Content:
        made = [self._buffer(buffer, width) for buffer in view.buffers] or [[("buffers are not recorded", DIM)]]
        used = [row for row in view.cache if row.owner]
        free = len(view.cache) - len(used)
        room = max(1, height - len(made))
        shown = sorted(used, key=lambda row: not row.shown)[
            : room if room >= len(used) + bool(free) else max(1, room - 1)
        ]
        made += [self._row(row, width) for row in shown]
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
