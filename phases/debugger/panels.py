"""The panels of the full screen: each draws a part of a view into the room that it has."""

import re

from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from textual.content import Content
from textual.widget import Widget

from phases.debugger.distribution import Candidate, Distribution
from phases.debugger.drawing import around
from phases.debugger.memory import Buffer, CacheRow
from phases.debugger.view import View

Part = tuple[str, str]  # text and its style

LOOKS = {
    "": "$foreground", "lit": "bold auto on $accent", "box": "bold $accent", "taken": "bold $text-success",
    "count": "$text-warning", "dim": "$foreground 45%",
}  # fmt: skip
DIM, STRONG = "$foreground 55%", "bold $foreground"
PHASE_LOOKS = ("$foreground 80%", "$text-error", "$text-primary", "$text-success", "$text-warning", "$text-accent")
TRUTHS: dict[bool | None, Part] = {
    True: ("✔ true ", "bold $text-success"), False: ("✘ false", "$text-error"), None: ("? unset", DIM),
}  # fmt: skip
EIGHTHS = " ▏▎▍▌▋▊▉█"
SHORT_TYPES = {"float": "f", "uint": "u", "int": "i"}


CONTROLS = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def visible(text: str) -> str:
    """Text with every control code but the end of a line as a visible sign: a model's text is not to be trusted."""
    return CONTROLS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def lines(*made: list[Part]) -> Content:
    """Lines of styled text; nothing in them is read as markup."""
    return Content("\n").join(
        Content.assemble(*(Content.styled(visible(text), style) for text, style in line)) for line in made
    )


class Panel(Widget):
    """A titled region that draws the view it was last shown."""

    DEFAULT_CSS = """
    Panel { border-top: solid $foreground 25%; border-title-color: $foreground 70%; border-title-style: bold; }
    """
    view: View | None = None

    def show(self, view: View) -> None:
        """Draw this view from now on."""
        self.view = view
        self.border_title = escape(self.title(view))
        self.refresh()

    def title(self, view: View) -> str:
        raise NotImplementedError

    def draw(self, view: View, width: int, height: int) -> Content:
        raise NotImplementedError

    def render(self) -> Content:
        width, height = self.size
        return self.draw(self.view, width, height) if self.view and width and height else Content("")


class MachinePanel(Panel):
    """The machine, the phase that runs next lit."""

    def title(self, view: View) -> str:
        return "machine"

    def draw(self, view: View, width: int, height: int) -> Content:
        return lines(*([(text, LOOKS[look]) for text, look in spans] for spans in around(view.drawing, height)))


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
        parts = [(_tail(text.prompt, 2000) + "\n", DIM), (_tail(text.before, 8000), "$foreground")]
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
            head.append([(_as_many([*view.sampling, f"kept {shown.kept} of {shown.vocab}"], width), DIM)])
            figures = [
                f"top1 {spread.top1:.3f}",
                f"margin {spread.margin:.3f}",
                f"entropy {spread.entropy:.2f}",
                "bits",
            ]
            head.append([(_as_many(figures, width), DIM)])
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


class GuardsPanel(Panel):
    """The guards of the phase that runs next, and what the last ones decided."""

    def title(self, view: View) -> str:
        return f"guards of {view.phase}, before it runs"

    def draw(self, view: View, width: int, height: int) -> Content:
        made: list[list[Part]] = []
        for guard in view.guards:
            mark, style = TRUTHS[guard.truth]
            made.append([(f"{mark} ", style), (guard.name, STRONG)])
            if guard.meaning and height >= 8:
                made.append([(fitted(f"        {guard.meaning}", width), DIM)])
        if not made:
            made.append([("none: it has one way to go", DIM)])
        if view.last:
            made.append([("last: ", DIM), (f"{view.last.phase} → {view.last.target}", "$foreground")])
            if view.last.guards:
                made.append([(f"      because {view.last.guards}", DIM)])
        return lines(*made[:height])


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


class BreakpointsPanel(Panel):
    """The breakpoints, and the runs that stand side by side."""

    def title(self, view: View) -> str:
        return "breakpoints and runs"

    def draw(self, view: View, width: int, height: int) -> Content:
        made: list[list[Part]] = [
            [(f"● {found.number} ", "$text-error"), (fitted(str(found), width - 5).rstrip(), "$foreground")]
            for found in view.breakpoints
        ] or [[("no breakpoints: k sets one", DIM)]]
        for index, branch in enumerate(view.branches):
            here = index == view.current
            made.append([("▶ " if here else "  ", "bold $accent"), (f"run {branch}", STRONG if here else DIM)])
        return lines(*made[:height])


class TimelinePanel(Panel):
    """The steps so far and those ahead, and where among them the run rests."""

    def title(self, view: View) -> str:
        return "timeline"

    def draw(self, view: View, width: int, height: int) -> Content:
        return lines(self._slider(view, width), self._strip(view, width), self._here(view, width))

    def _slider(self, view: View, width: int) -> list[Part]:
        place = round(view.step / view.steps * (width - 1)) if view.steps else 0
        return [("━" * place, "$accent"), ("●", "bold $accent"), ("─" * (width - 1 - place), "$foreground 30%")]

    def _strip(self, view: View, width: int) -> list[Part]:
        """A letter a step, and one for the phase that runs next; the future is dim."""
        names = [moment.phase for moment in view.moments]
        numbers = [moment.number for moment in view.moments]
        if view.step == view.steps:
            names, numbers = [*names, view.phase], [*numbers, view.step]
        letters = self._letters(view)
        looks = {name: PHASE_LOOKS[index % len(PHASE_LOOKS)] for index, name in enumerate(letters)}
        room = max(1, width // 2)
        here = numbers.index(view.step)
        first = max(0, min(here - room // 2, len(names) - room))
        made: list[Part] = []
        for name, number in list(zip(names, numbers, strict=True))[first : first + room]:
            letter = letters.get(name, "■")
            if number == view.step:
                made.append((letter, LOOKS["lit"]))
            else:
                made.append(
                    (letter, looks.get(name, STRONG) if number < view.step else f"{looks.get(name, STRONG)} 45%")
                )
            made.append((" ", ""))
        return made

    @staticmethod
    def _letters(view: View) -> dict[str, str]:
        """A letter of its own for every phase of the drawing, the first of its name that is still free."""
        found: dict[str, str] = {}
        for moment in sorted(view.moments, key=lambda moment: moment.number):
            for name in (moment.phase, moment.target):
                if name not in found:
                    free = [c.upper() for c in name if c.isalpha() and c.upper() not in found.values()]
                    found[name] = free[0] if free else "?"
        return found or {view.phase: view.phase[:1].upper()}

    def _here(self, view: View, width: int) -> list[Part]:
        words = [f"step {view.step} of {view.steps}", f"{view.elapsed_ns / 1e6:.1f} ms of work"]
        if view.last:
            words.append(f"last: {view.last.phase} {view.last.elapsed_ns / 1e6:.3f} ms")
            if view.last.found:
                words.append(view.last.found)
        return [(fitted(" · ".join(words), width), DIM)]


class StatusLine(Widget):
    """One line: which run, how it stands, and what was said last."""

    view: View | None = None
    message: str = ""

    def show(self, view: View, message: str) -> None:
        """Draw this view and message from now on."""
        self.view, self.message = view, message
        self.refresh()

    def render(self) -> Content:
        view = self.view
        if view is None:
            return Content("")
        looks = {"running": "bold $text-success", "failed": "bold $text-error", "done": "bold $primary"}
        number = view.branches[view.current].split(" ")[0]
        run = f" run {number}" + (f" of {len(view.branches)}" if len(view.branches) > 1 else "")
        parts = [
            (run, STRONG), (f"  {view.status}", looks.get(view.status, "bold $text-warning")), (" at ", DIM),
            (view.phase, STRONG), (f"  step {view.step}", DIM),
        ]  # fmt: skip
        said = view.notice or self.message
        room = self.size.width - sum(len(text) for text, _ in parts) - 3
        error = bool(view.notice) or said.startswith(("error", "failed"))
        parts.append((f"   {fitted(said, max(0, room)).rstrip()}", "bold $text-error" if error else "$text-accent"))
        return lines(parts)


class KeysLine(Widget):
    """All keys, in as few lines as they need."""

    keys: tuple[tuple[str, str], ...] = ()

    def wrapped(self, width: int) -> list[list[tuple[str, str]]]:
        """The keys that stand on each line."""
        made: list[list[tuple[str, str]]] = [[]]
        used = 0
        for key, word in self.keys:
            length = len(key) + len(word) + 3
            if used + length > width + 1 and made[-1]:
                made.append([])
                used = 0
            made[-1].append((key, word))
            used += length
        return made

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        return len(self.wrapped(width))

    def render(self) -> Content:
        made = []
        for row in self.wrapped(self.size.width):
            line: list[Part] = []
            for key, word in row:
                line += [(key, "bold $text-accent"), (f" {word}  ", DIM)]
            made.append(line)
        return lines(*made)


def percent(share: float) -> str:
    """A probability in at most six characters."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.9995 else "100%"


def bar_of(share: float, width: int) -> str:
    """A bar of this share of the width, in eighths of a character, filled up with spaces; something shows at least."""
    eighths = max(1 if share > 0 else 0, round(min(share, 1) * width * 8))
    whole, rest = divmod(eighths, 8)
    return (EIGHTHS[8] * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def _as_many(words: list[str], width: int) -> str:
    """As many of these words as fit, two spaces between them where there is room."""
    for between in ("  ", " "):
        if len(between.join(words)) <= width:
            return between.join(words)
    return _as_many(words[:-1], width) if len(words) > 1 else words[0][:width]


def fitted(text: str, width: int) -> str:
    """Text in exactly so many cells: filled up with spaces, or cut."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, max(0, width - 1)).rstrip(" ") + "…" * min(1, width)


def _tail(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[-length:]}"
