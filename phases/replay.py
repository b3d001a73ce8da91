"""Replays generations from their journals: run again and compared, played without any model, or gone on with."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from os.path import expanduser, isdir
from typing import TYPE_CHECKING, Any, Literal

from gpu import AdapterError, OptionError, refused_engine
from phases.constrain import constrained
from phases.context import Generation
from phases.errors import RequestError
from phases.generation import machine as generation_machine
from phases.lora import Adapters
from phases.recorded import MOST_ROWS, MOST_TOKENS, capacity_of, lora_of, other_weights, quantize_of, request_of
from statemachine import Divergence, Journal, JournalError, Machine, Run, Verdict, play, verify
from statemachine.record.exact import shown

if TYPE_CHECKING:
    from gpu import Progress
    from phases.generator import Generator

Mode = Literal["verify", "play", "fork"]

MOST_THREADS = 4096


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay: the run, resting where it got to, and where it diverged, if it did.

    Attributes
    ----------
    verdict
        Of "verify": also how far the record reaches, and what differs in the headers.
    """

    journal: Journal
    run: Run[Generation]
    divergence: Divergence | None
    verdict: Verdict | None = None


def replay(
    journal: str | PathLike[str] | Journal,
    mode: Mode = "verify",
    *,
    generator: "Generator | None" = None,
    at: int | None = None,
    new_journal: str | PathLike[str] | None = None,
    machine: Machine[Generation] = generation_machine,
    progress: "Progress | None" = None,
    watch: Callable[[int], None] | None = None,
) -> Replay:
    """Replay a journal.

    Parameters
    ----------
    mode
        "verify" runs it again and compares every compared field. "play" applies the recorded outcomes, with no model,
        engine or tokenizer. "fork" plays to step `at` and rests there, ready to go on live on rows of its own.
    generator
        What runs it again; unless given, the model that the journal names is loaded as it was then.
    at
        For "play" and "fork": stop before the step of this number; unless given, at the end of the record.
    new_journal
        For "fork": where to record the new run, the part that is played included.
    machine
        The one that the journal was recorded with; a `generator` that is given has its own.
    progress
        See `Generator.from_pretrained`, if a model is loaded.
    watch
        Called with the number of steps replayed, after each.

    Raises
    ------
    JournalError
        When the journal is damaged or holds no generation, or `generator` has weights that are quantised in another
        way.
    CheckpointError
        When the model that it names cannot be loaded.
    """
    if mode not in ("verify", "play", "fork"):
        raise ValueError(f"mode is 'verify', 'play' or 'fork', not {mode!r}")
    opened = journal if isinstance(journal, Journal) else Journal.open(journal)
    if mode == "play":
        run = played_run(opened, machine)
        return Replay(opened, run, play(opened, run, until=at, watch=watch))
    request, capacity = request_of(opened), capacity_of(opened)
    if generator is None:
        generator = load_generator(opened, machine=machine, progress=progress)
    elif (
        other := other_weights(opened, generator.environment()) or generator.other_adapter(opened, request)
    ) is not None:
        raise JournalError(other)
    run = generator.start(request, keep=True, journal=new_journal, capacity=capacity)
    try:
        if mode == "verify":
            verdict = verify(opened, run, watch=watch)
            return Replay(opened, run, verdict.divergence, verdict)
        divergence = play(opened, run, until=at, watch=watch)
        if divergence is None and not run.status.ended:
            run.resources.rebuild(run.context)
        return Replay(opened, run, divergence)
    except BaseException:
        run.close()
        raise


def played_run(journal: Journal, machine: Machine[Generation] = generation_machine) -> Run[Generation]:
    """A ready run of a recorded generation that has neither engine nor tokenizer: it can only be played."""
    request, capacity = request_of(journal), capacity_of(journal)
    context = Generation(request, tuple(range(len(request.requests))), capacity)
    return Run(constrained(machine, request), context, run_id=journal.header.run, request=request, keep=True)


def load_generator(
    journal: Journal,
    *,
    model: str | None = None,
    machine: Machine[Generation] = generation_machine,
    progress: "Progress | None" = None,
    adapters: Adapters | None = None,
) -> "Generator":
    """Load the model that a journal names (or that stands elsewhere now), as it was then.

    That is, with the same engine, capacity, rows and threads, weights quantised in the same way, and decoding in the
    way that was recorded, if one was; and with the same LoRA adapters, of which those in `adapters` stand elsewhere.

    A journal comes from anywhere and can name anything: what it names is loaded if it is a folder here, and never asked
    for at the hub; name it in `model` for that.

    Raises
    ------
    JournalError
        When it names what is no folder here, an adapter that is another one now, an engine that cannot run here or
        quantises no weights like that, or numbers that no model is loaded with.
    CheckpointError
        When the model cannot be loaded.
    """
    from phases.generator import DEMO, Generator

    environment = journal.header.environment
    source = model or environment.get("source", DEMO)
    if model is None and source != DEMO and not (isinstance(source, str) and source and isdir(expanduser(source))):
        raise JournalError(f"{journal.path} names the model {shown(source)!r}, which is no folder here: name a model")
    options: dict[str, Any] = {}
    for name, key, most in (
        ("max_batch", "rows", MOST_ROWS), ("capacity", "capacity", MOST_TOKENS), ("threads", "threads", MOST_THREADS)
    ):  # fmt: skip
        number = environment.get(key)
        if number is not None and (type(number) is not int or not 1 <= number <= most):
            raise JournalError(f"{journal.path}: {shown(number)} {key} are none that a model is loaded with")
        options[name] = number
    options["max_batch"] = options["max_batch"] or len(request_of(journal).requests)
    options["quantize"] = quantize_of(journal)
    options["decode"] = decode = environment.get("decode")
    if not isinstance(decode, str | None):
        raise JournalError(f"{journal.path}: {shown(decode)} is no way to decode")
    engine = str(environment.get("engine", "auto"))
    if (refused := refused_engine(engine)) is not None:
        raise JournalError(f"{journal.path} cannot be run again: {shown(refused)}")
    path = None if source == DEMO else str(source)
    options["adapters"] = lora_of(journal, adapters or {})
    try:
        generator = Generator.from_pretrained(path, engine, machine=machine, progress=progress, **options)
    except (AdapterError, OptionError, RequestError) as error:
        raise JournalError(f"{journal.path} cannot be run again: {error}") from error
    if (other := generator.other_adapter(journal, request_of(journal))) is not None:
        generator.close()
        raise JournalError(other)
    return generator


def loaded_as(journal: Journal, model: str | None = None) -> str:
    """Equal for journals that `load_generator` loads the same model in the same way for."""
    environment = journal.header.environment
    names = ("source", "engine", "rows", "capacity", "threads", "quantize", "decode", "model", "lora")
    used = {(row.lora_weights_name, row.lora_fingerprint) for row in request_of(journal).requests}
    return repr([model, *(environment.get(name) for name in names), sorted(used, key=repr)])
