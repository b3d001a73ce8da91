"""phasewalk check: prove a machine sound, or list what is wrong with it."""

import typer

from phases.cli.screen import shown, stdout
from phases.cli.target import BUILT_IN, MachineArgument, find_machine


def check(machine: MachineArgument = BUILT_IN) -> None:
    """Prove that a machine can never get stuck, and show its table.

    For every phase and every combination of its guards' values exactly one transition must be enabled, every phase
    must be reachable, and from each there must be a way to an end. Exit status 1 if anything is wrong.
    """
    from rich.table import Table

    from statemachine import InvalidMachine
    from statemachine.definition.table import label, name_of
    from statemachine.definition.variable import row_count

    try:
        found = find_machine(machine)
    except InvalidMachine as invalid:
        console = stdout()
        console.print(f"{len(invalid.findings)} finding(s):", style="red")
        for finding in invalid.findings:
            console.print(f"  {shown(str(finding))}")
        raise typer.Exit(1) from None
    program = found.program()
    table = Table("phase", "goes to", "when", "guards", "cases")
    for phase, atoms in zip(program.phases, program.atoms, strict=True):
        ways = [way for way in found.transitions if way.source in (phase, phase.name)]
        table.add_row(
            shown(phase.name),
            shown("\n".join(name_of(way.target) for way in ways) or "(end)"),
            shown("\n".join(label(way.errors, way.condition) or "always" for way in ways)),
            str(len(atoms)),
            str(row_count(atom.values for atom in atoms)) if ways else "",
        )
    console = stdout()
    console.print(table)
    for signal in found.signals:
        console.print(f"signal {shown(str(signal))}")
    console.print(f"[green]{shown(found.name)} is sound:[/] no run of it can get stuck or has two ways to go.")
