"""The panels for what a run of any machine works on: its context, and what may come to it from outside."""

from rich.cells import cell_len
from textual.content import Content

from phases.debugger.cells import fitted
from phases.debugger.fields import Field
from phases.debugger.inputs import Input
from phases.debugger.panel import Panel
from phases.debugger.styled import DIM, STRONG, Part, cut, lines
from phases.debugger.view import View

NAMES = 24  # cells that names of fields may take


class ContextPanel(Panel[View]):
    """The fields of the context, those that the last step changed with what they were."""

    def title(self, view: View) -> str:
        return "context" if view.compared else "context (too large to compare at each step: the command context does)"

    def draw(self, view: View, width: int, height: int) -> Content:
        if not view.fields:
            return lines([("the context has no fields", DIM)])
        shown = list(view.fields)
        if len(shown) > height:  # what changed is not to be missed
            shown = sorted(shown, key=lambda field: field.before is None)[: max(1, height - 1)]
        named = min(NAMES, max(cell_len(field.name) for field in shown))
        made = [self._line(field, named, width) for field in shown]
        if len(shown) < len(view.fields):
            made.append([(f"  {len(view.fields) - len(shown)} more: v shows all", DIM)])
        return lines(*made[:height])

    def _line(self, field: Field, named: int, width: int) -> list[Part]:
        name, room = fitted(field.name, named), max(4, width - named - 4)
        if field.before is None:
            return [("  ", ""), (name, DIM), ("  ", ""), (fitted(field.value, room).rstrip(), "$foreground")]
        old = room // 2 - 2 if cell_len(field.before) + cell_len(field.value) + 3 > room else cell_len(field.before)
        return cut(
            [
                ("▶ ", "bold $accent"), (name, STRONG), ("  ", ""), (fitted(field.before, old), DIM), (" → ", DIM),
                (field.value, "bold $text-accent"),
            ],
            width,
        )  # fmt: skip


class InputsPanel(Panel[View]):
    """What can come from outside, what of it now, and what has come."""

    def title(self, view: View) -> str:
        return "signals and events"

    def draw(self, view: View, width: int, height: int) -> Content:
        made = [cut(self._line(found), width) for found in view.inputs] or [[("nothing comes from outside", DIM)]]
        happened = [cut([(f"{number:>6} ", DIM), (words, "$foreground")], width) for number, words in view.happened]
        room = max(0, height - len(made))
        return lines(*made[:height], *happened[max(0, len(happened) - room) :] if room else ())

    def _line(self, found: Input) -> list[Part]:
        mark: Part = ("✔ ", "bold $text-success") if found.possible else ("✘ ", "$text-error")
        style = "bold $text-warning" if found.kind == "answer" else STRONG if found.possible else DIM
        return [mark, (f"{found.kind} ", DIM), (found.name, style), (f"  {found.words}", DIM)]
