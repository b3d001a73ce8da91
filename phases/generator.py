"""The door for applications: a model that generates text, whole, as a stream or step by step."""

import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from gpu import (
    CheckpointError,
    Engine,
    ModelConfig,
    Progress,
    load_engine,
    model_fingerprint,
    resolve_checkpoint,
    tokenizer_fingerprint,
)
from gpu.checkpoint.files import read_object
from phases.cancel_row import check_live
from phases.candidates import Candidate, next_candidates
from phases.checks import prefill_bound
from phases.constrain import check_constraints, constrained
from phases.context import Generation
from phases.errors import IgnoredSettings, RequestError
from phases.generation import check_stop
from phases.generation import machine as generation_machine
from phases.generation_config import not_honoured, params_of
from phases.logits_phase import adjusters_of
from phases.logprobs import Asked, Score, score_tokens
from phases.lora import Adapters, other_adapter, read_adapter, with_adapters
from phases.printable import one_line
from phases.prompt_cache import PromptCache, byte_count
from phases.request import GenerationRequest, GenerationResult, Params, RowRequest, RowResult, SamplingParams
from phases.resources import EngineResources
from phases.resting_rows import RestingRows
from phases.result import finish_reason, result_of, row_result
from phases.streaming import RowText, TextPiece, cancel, fresh_pieces
from phases.tokenizer import Tokenizer
from statemachine import Machine, PhaseError, Run, SnapshotError, Step
from statemachine.definition.machine import Interpreter
from statemachine.execution.tasks import each_in_thread, in_thread

if TYPE_CHECKING:  # what records is imported by those who record: a first token need not wait for it
    from statemachine import Journal, JournalWriter, Snapshot

DEMO = "the bundled demo model"
DEMO_MODEL = Path(__file__).parent / "demo_model"
UNSET = SamplingParams()
OnFinished = Callable[[int, RowResult], object]


class Generator:
    """A loaded model and the machine that runs it. A context manager; use it from as many threads as you like.

    Wherever a method takes `x`, that is a prompt, a list of messages (`Message` or `{"role", "content"}`), a list of
    token ids, a list of any of these (a batch), or a `GenerationRequest`; `params` is one for all rows or a list.

    Parameters
    ----------
    engine
        What computes.
    tokenizer
        What turns text into token ids.
    defaults
        Sampling parameters for whatever a request leaves unset.
    machine
        The machine that every run follows: the built-in one, or one made of it with `machine.insert(...)`. A run with a
        constraint has the phase `constrain` besides.
    source
        What the model is called, for records.
    folder
        Where its files are.
    prompt_cache
        What holds the beginnings of prompts; without one every prompt is computed whole.
    max_prefill_tokens
        What a request has that does not say, see `GenerationRequest`; unless given, 512, or 2,048 on a device.
    use_lora
        The adapter, by its name, of rows that name none.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        defaults: SamplingParams = UNSET,
        machine: Machine[Generation] = generation_machine,
        source: str = DEMO,
        folder: Path | None = None,
        prompt_cache: PromptCache | RestingRows | None = None,
        max_prefill_tokens: int | None = None,
        use_lora: str | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.defaults = defaults
        self.machine = machine
        self.source = source
        self.folder = folder
        self.prompt_cache = prompt_cache
        usual = 512 if engine.synchronous else 2048
        self.max_prefill_tokens = prefill_bound(usual if max_prefill_tokens is None else max_prefill_tokens)
        self.use_lora = use_lora
        self._adapter_paths: dict[str, str | None] = {}  # by name; None: it is bundled
        self._resources = EngineResources(engine, tokenizer, self.environment, prompt_cache)
        self._environment: dict[str, Any] | None = None
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path | None = None,
        engine: str = "auto",
        *,
        max_batch: int = 8,
        capacity: int | None = None,
        threads: int | None = None,
        self_check: bool = True,
        strict: bool = False,
        progress: Progress | None = None,
        machine: Machine[Generation] = generation_machine,
        prompt_cache: int | str | None = None,
        prompt_cache_dir: str | PathLike[str] | None = None,
        prompt_cache_dir_limit: int | str = "4 GB",
        max_prefill_tokens: int | None = None,
        adapters: Adapters | None = None,
        use_lora: str | None = None,
        max_adapters: int | None = None,
        max_lora_rank: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a checkpoint in Hugging Face format: a folder or a hub id; None is the bundled demo model.

        Parameters
        ----------
        engine
            An engine's name, or "auto": the fastest that runs here and has what is asked for. `gpu.choose_engine` tells
            which that is, and why.
        max_batch
            How many rows can be generated at the same time, all runs together.
        capacity
            Tokens that a row can hold, prompt and output together; unless given, what the model allows, at most 4096.
        threads
            Threads for the engine's heavy work; unless given, the engine's choice.
        self_check
            Compare prefill with decode once before use; costs a few tokens' time.
        strict
            Refuse a checkpoint whose generation_config.json asks for what is not honoured, instead of warning
            (`phases.errors.IgnoredSettings`) of it.
        progress
            Called with (what is done, bytes done, bytes in all) while the engine loads: 0 of 0 where none are counted.
        prompt_cache
            Bytes of memory for the beginnings of prompts, so that a prompt that begins like one of a run that has ended
            need not compute that again: no token or logit is another then. A number, or as in "256 MB"; 0 is off.
            Unless given, 256 MB; on a device, what rows hold that are free is reused there instead.
        prompt_cache_dir
            A folder where they are kept, too, for other processes and later ones. Who can write to it can change what
            the model says.
        prompt_cache_dir_limit
            Bytes that the folder may take.
        max_prefill_tokens
            Tokens of prompts, all rows of a run together, that a step feeds at most, so that a pause, a signal or a
            debugger need not wait for a long one to its end. It changes no token. Unless given, 512, or 2,048 on a
            device.
        adapters
            LoRA adapters to load, folders in PEFT's format by the names that rows use; None for a folder is the bundled
            adapter of that name.
        use_lora
            The adapter of rows that name none; unless given, they have none.
        max_adapters
            Room for so many, if more are to be loaded later; unless given, for those of `adapters`.
        max_lora_rank
            The highest rank that one may have; unless given, that of `adapters`, or 64 where more may be loaded.
        **options
            What only some engines take, see `gpu.load_engine`: `quantize="int8"` for weights of 8 bits (cuda, onnx),
            `"fp8"` (cuda) or `"int4"` (onnx), `export=` a folder of `phasewalk export` (onnx), `decode=` (cuda, numpy,
            tensorrt). "auto" chooses an engine that has them. `phasewalk perplexity` tells what fewer bits cost in
            quality. Records say which weights they were made with, and are replayed and gone on with by no others.

        Raises
        ------
        CheckpointError
            When there is no such checkpoint, a file of it is damaged, or no engine here can run it; with `strict`, also
            when it asks for what is not honoured.
        AdapterError
            When an adapter is none, or none of this model.
        RequestError
            When there is no adapter of a name.
        OptionError
            When the engine has no such option, or not with this value.
        OSError
            When there is no such folder for the prompt cache, and it cannot be made.
        """
        memory = byte_count("256 MB" if prompt_cache is None else prompt_cache, "prompt_cache")
        disk = byte_count(prompt_cache_dir_limit, "prompt_cache_dir_limit")
        folder = resolve_checkpoint(DEMO_MODEL if path_or_hub_id is None else path_or_hub_id)
        asked = _defaults(folder, strict=strict)
        adapters = adapters or {}
        if use_lora is not None and use_lora not in adapters:
            raise RequestError(
                f"there is no adapter {use_lora!r:.80} to use; there are {', '.join(adapters) or 'none'}"
            )
        model = ModelConfig.from_folder(folder) if adapters else None
        read = {name: read_adapter(name, path, model, max_lora_rank) for name, path in adapters.items() if model}
        room = max(len(read), max_adapters or 0) or None
        if max_lora_rank is None and read and room == len(read):
            max_lora_rank = max(adapter.rank for adapter in read.values())
        loaded = load_engine(
            folder, engine, max_batch=max_batch, capacity=capacity, threads=threads, self_check=self_check,
            progress=progress, adapters=room, max_lora_rank=max_lora_rank, **options,
        )  # fmt: skip
        try:
            for name, adapter in read.items():
                loaded.load_adapter(name, adapter)
            tokenizer = Tokenizer.from_pretrained(folder)
            defaults = asked.over(SamplingParams(stop_token_ids=loaded.model.eos_ids))
            source = DEMO if path_or_hub_id is None else str(path_or_hub_id)
            kept = None
            if prompt_cache_dir is not None:
                from phases.prompt_folder import PromptFolder

                kept = PromptFolder(prompt_cache_dir, limit=disk, bound_to=_bound_to(loaded, folder))
            cache: PromptCache | RestingRows | None = None
            if prompt_cache is None and kept is None and not loaded.synchronous:
                cache = RestingRows(loaded)
            elif memory or kept:
                cache = PromptCache(loaded, limit=memory, folder=kept)
            made = cls(
                loaded, tokenizer, defaults=defaults, machine=machine, source=source, folder=folder,
                max_prefill_tokens=max_prefill_tokens, prompt_cache=cache, use_lora=use_lora,
            )  # fmt: skip
            made._adapter_paths = {name: None if path is None else str(path) for name, path in adapters.items()}
            return made
        except BaseException:
            loaded.close()
            raise

    def load_adapter(self, name: str, path: str | Path | None = None) -> None:
        """Load a LoRA adapter, which rows of requests name from now on; without a path, the bundled one of that name.

        Raises
        ------
        AdapterError
            When it is no adapter of this model, is damaged, or has a higher rank than there is room for.
        RequestError
            When it is called what another one is, nothing, or no bundled adapter is called so.
        ValueError
            When as many adapters are loaded as there is room for: see `max_adapters` of `from_pretrained`.
        """
        if name in self.engine.adapters:
            raise RequestError(f"there is an adapter {name!r:.80} already; choose another name")
        adapter = read_adapter(name, path, self.engine.model, self.engine.max_lora_rank)
        self.engine.load_adapter(name, adapter)
        self._adapter_paths[name] = None if path is None else str(path)
        self._environment = None

    # --- whole, in one call -------------------------------------------------------------------------------------

    def generate(self, x: Any, params: Params = None, *, on_finished: OnFinished | None = None) -> GenerationResult:
        """Generate until every row has ended.

        Parameters
        ----------
        on_finished
            Called with the number of a row and its result as soon as it has ended, between two steps, once for each.
            What it raises ends the run, and is raised here; the rows are free then.

        Raises
        ------
        RequestError
            When no such request can be made, or a prompt is empty or too long.
        NoFreeRows
            Before anything has run: not enough rows are free.
        PhaseError
            When a phase fails; `__cause__` says why.
        """
        with self.start(x, params) as run, _refused_plainly():
            if on_finished is None:
                run.start()
            else:
                for row, result in self.finished(run):
                    on_finished(row, result)
        return self.result(run)

    async def agenerate(
        self, x: Any, params: Params = None, *, on_finished: OnFinished | None = None
    ) -> GenerationResult:
        """`generate` for asyncio. Cancelling the task cancels the run at the next boundary and frees its rows.

        `on_finished` is called by the event loop's thread.
        """
        with self.start(x, params) as run, _refused_plainly():
            if on_finished is None:
                await in_thread(run.start, stop=lambda: cancel(run))
            else:
                async for row, result in each_in_thread(self.finished(run), stop=lambda: cancel(run)):
                    on_finished(row, result)
        return self.result(run)

    def score(self, prompt: Any, continuation: "str | Sequence[int]", *, top: int = 0) -> Score:
        """Tell how likely the model holds a continuation of a prompt, with no penalties and no temperature.

        Parameters
        ----------
        prompt
            One row, as any method takes it.
        continuation
            The text that follows, which becomes tokens of its own, without special ones, or token ids.
        top
            Tell so many of the likeliest tokens in each place, too, 0 to 100.

        Raises
        ------
        RequestError
            When the prompt or the continuation is empty, holds unknown tokens, or both do not fit into a row.
        NoFreeRows
            When no row is free.
        """
        asked = self.with_adapters(GenerationRequest.of(prompt, SamplingParams(prompt_logprobs=top)))
        if len(asked.requests) != 1:
            raise RequestError(f"one prompt is scored at a time, but {len(asked.requests)} came")
        known = self.tokenizer.encode(asked.requests[0])
        if isinstance(continuation, str):
            following = self.tokenizer.encode_continuation(continuation)
        else:
            following = RowRequest(token_ids=continuation).token_ids or ()  # type: ignore[arg-type]  # made a tuple
        ids, vocab, cache = (*known, *following), self.engine.model.vocab, self.engine.kv_cache
        if not known or not following or max(ids) >= vocab or len(ids) > cache.capacity:
            raise RequestError(
                f"a prompt of {len(known)} tokens with a continuation of {len(following)} cannot be scored: expected "
                f"at least 1 of each and at most {cache.capacity} together, all of ids below {vocab}"
            )
        rows = cache.acquire(1)
        try:
            self.engine.set_adapter(rows[0], asked.requests[0].lora_weights_name or None)
            return Score(score_tokens(self.engine, {rows[0]: Asked(ids, len(known), top)})[rows[0]])
        finally:
            cache.release(rows)

    # --- as it comes --------------------------------------------------------------------------------------------

    def stream(self, x: Any, params: Params = None) -> Iterator[TextPiece]:
        """Text as it is generated, in pieces that never hold half a character; `piece.row` says whose it is.

        The last piece of a row says why it ended, in `piece.finish_reason`; it may have no text.

        Ending the iteration early (closing the iterator) cancels the run and frees its rows.
        """
        with self.start(x, params) as run, _refused_plainly():
            try:
                yield from self.pieces(run)
            finally:
                cancel(run)

    def pieces(
        self, run: Run[Generation], *, on_step: Callable[[Step], None] | None = None, whole: bool = False
    ) -> Iterator[TextPiece]:
        """Drive a run of this generator, ready or paused, and give its text as it comes; `on_step` sees every step.

        Of a run that has text already, only what is new is given, unless `whole` is asked for.
        """
        texts = [RowText(self.tokenizer, row.params) for row in run.context.request.requests]
        for piece in fresh_pieces(run, texts):
            if whole:
                yield piece
        for step in run if on_step else run.each(check_stop):
            if on_step:
                on_step(step)
            if step.phase == check_stop.name:
                yield from fresh_pieces(run, texts)
        yield from fresh_pieces(run, texts)  # of rows that ended with the run: it was cancelled

    async def astream(self, x: Any, params: Params = None) -> AsyncIterator[TextPiece]:
        """`stream` for asyncio. Cancelling the task cancels the run at the next boundary and frees its rows."""
        with self.start(x, params) as run, _refused_plainly():
            try:
                async for piece in each_in_thread(self.pieces(run), stop=lambda: cancel(run)):
                    yield piece
            finally:
                cancel(run)

    # --- row by row ---------------------------------------------------------------------------------------------

    def finished(self, run: Run[Generation]) -> Iterator[tuple[int, RowResult]]:
        """Drive a run of this generator, ready or paused, and give each row's result as soon as it has ended."""
        going = list(run.context.live)
        for _ in run.each(check_stop):
            for row in [row for row in going if finish_reason(run, row) is not None]:
                going.remove(row)
                yield row, row_result(run, row, self.tokenizer)
        for row in going:  # they ended with the run: it was cancelled
            if finish_reason(run, row) is not None:
                yield row, row_result(run, row, self.tokenizer)

    def cancel_row(self, run: Run[Generation], row: int) -> None:
        """End one row of a run with the tokens that it has; of use from any thread. All other rows go on to the bit.

        It takes effect where the run next draws tokens, or feeds a piece of a prompt. If the row ends by itself before
        that, nothing happens; the record and the log say so.

        Raises
        ------
        RequestError
            When the run has no such row, or it has ended.
        IllegalMove
            When the run has ended.
        """
        check_live(run.context, row)
        run.signal("cancel_row", row, wait=True)

    # --- the machine itself -------------------------------------------------------------------------------------

    def request(self, x: Any, params: Params = None) -> GenerationRequest:
        """The request that `start` would make: every parameter is set, and what can be refused at once has been.

        Raises
        ------
        RequestError
            When no request can be made of `x` and `params`, a constraint cannot be kept, or an adapter is not loaded.
        """
        request = GenerationRequest.of(x, params).resolved(self.defaults, max_prefill_tokens=self.max_prefill_tokens)
        request = self.with_adapters(request)
        check_constraints(request, self.tokenizer, self.engine.model.vocab)
        if self.prompt_cache is None and any(row.save_system_prompt_kv_cache for row in request.requests):
            raise RequestError("save_system_prompt_kv_cache needs a prompt cache: load the model with one, not with 0")
        return request

    def with_adapters(self, request: GenerationRequest) -> GenerationRequest:
        """A request whose rows say which adapter they have; raises RequestError if one of them is not loaded."""
        return with_adapters(request, self.engine.adapters, self.use_lora)

    def start(
        self,
        x: Any,
        params: Params = None,
        *,
        journal: "str | PathLike[str] | JournalWriter | None" = None,
        digest_every: int = 0,
        keep: bool = False,
        capacity: int | None = None,
        max_prefill_tokens: int | None = None,
        interpreter: Interpreter = "compiled",
        log_steps: bool = False,
    ) -> Run[Generation]:
        """Make a run, ready to be stepped, driven, paused and watched.

        It holds rows of the engine until it ends, is closed or is forgotten; one that failed holds them too, as it can
        be tried again. Its text so far is `run.context.output_ids`; `result(run)` gives what `generate` would.

        Parameters
        ----------
        journal
            A new file to record the run in, or a JournalWriter made with other options.
        digest_every
            Record a digest of the logits after every n-th Prefill or Decode; 0 is off.
        keep
            Keep the rows when the run ends, until `run.close()`, so that one can go back from its end.
        capacity
            Tokens that a row of this run may hold, prompt and output together; unless given, what the engine allows.
        max_prefill_tokens
            Tokens of prompts that a step feeds at most, see `GenerationRequest`.

        Raises
        ------
        RequestError
            When no request can be made of `x` and `params`, or a constraint cannot be kept.
        NoFreeRows
            When the engine has not as many free rows.
        JournalError
            When the journal exists already or cannot be made.
        """
        request = self.request(x, params)
        if max_prefill_tokens is not None:
            request = replace(request, max_prefill_tokens=max_prefill_tokens)
        return self._run(
            request, journal=journal, digest_every=digest_every, keep=keep, capacity=capacity,
            interpreter=interpreter, log_steps=log_steps,
        )  # fmt: skip

    def _run(
        self,
        request: GenerationRequest,
        *,
        journal: "str | PathLike[str] | JournalWriter | None" = None,
        capacity: int | None = None,
        **options: Any,
    ) -> Run[Generation]:
        if self._closed:
            raise RuntimeError("this generator is closed; make another with Generator.from_pretrained")
        machine = constrained(self.machine, request)
        context = self._resources.lend(request, capacity)
        try:
            context.adjusters = adjusters_of(machine)
            if isinstance(journal, str | PathLike):
                from statemachine import JournalWriter

                journal = JournalWriter(journal)
            return Run(
                machine, context, resources=self._resources, request=request, journal=journal, **options
            )  # fmt: skip
        except BaseException:  # whoever keeps the error keeps the context: its rows must not wait for that
            self._resources.release(context)
            raise

    def resume(
        self,
        path: "str | PathLike[str] | Snapshot",
        *,
        journal: "str | PathLike[str] | JournalWriter | None" = None,
        keep: bool = False,
    ) -> Run[Generation]:
        """A paused run that goes on where `run.snapshot(path)` left off, on rows of this generator.

        Raises
        ------
        SnapshotError
            When the file is damaged, or belongs to another model, tokenizer or machine, or to weights that were
            quantised in another way; nothing was harmed.
        NoFreeRows
            When the engine has not as many free rows.
        """
        from phases.recorded import capacity_of
        from statemachine.record.snapshot import load, restore

        snapshot = load(path) if isinstance(path, str | PathLike) else path
        request = self._request_of(snapshot.journal, SnapshotError)
        run = self._run(request, keep=keep, journal=journal, capacity=capacity_of(snapshot.journal))
        run.resumed = {"file": snapshot.path.name, **snapshot.options}
        try:
            divergence = restore(snapshot, run)
            if divergence:
                raise SnapshotError(f"{snapshot.path} cannot be resumed: {divergence.report()}")
        except BaseException:
            run.close()
            raise
        return run

    def recover(
        self,
        path: str | PathLike[str],
        *,
        every: Literal["50 ms", "step"] = "50 ms",
        sync: bool = False,
        keep: bool = False,
    ) -> Run[Generation]:
        """A run that goes on where a journal ends whose process was killed, recorded in the same file.

        No token is drawn again; the cache is filled by a prefill of all that there are.

        Parameters
        ----------
        path
            The journal, to which no process writes any more.
        every
            When it is written, as `JournalWriter` has it.
        sync
            Whether each write is waited for, as `JournalWriter` has it.
        keep
            Keep the rows when the run ends, until `run.close()`.

        Raises
        ------
        JournalError
            When it is damaged, is still being written, or belongs to another model, tokenizer or machine, or to
            weights that were quantised in another way.
        NoFreeRows
            When the engine has not as many free rows.
        """
        from phases.recorded import capacity_of
        from statemachine import Journal, JournalError, recover

        journal = Journal.open(path)
        run = self._run(self._request_of(journal, JournalError), keep=keep, capacity=capacity_of(journal))
        try:
            if divergence := recover(path, run, every=every, sync=sync):
                raise JournalError(f"{path} cannot be gone on with: {divergence.report()}")
        except BaseException:
            run.close()
            raise
        return run

    def _request_of(self, journal: "Journal", refusal: type[Exception]) -> GenerationRequest:
        """The request of a record that must have been made with this model; whether the machine fits, play decides."""
        from phases.recorded import other_weights, request_of

        request = request_of(journal)
        mine, its = self.environment(), journal.header.environment
        wrong = [
            f"{name} {one_line(its.get(name))} -> {mine[name]}"
            for name in ("model", "tokenizer")
            if its.get(name) != mine[name]
        ]
        if wrong:
            raise refusal(f"{journal.path} belongs to another {', another '.join(wrong)}")
        if (other := other_weights(journal, mine) or self.other_adapter(journal, request)) is not None:
            raise refusal(other)
        check_constraints(request, self.tokenizer, self.engine.model.vocab)
        return request

    def other_adapter(self, journal: "Journal", request: GenerationRequest) -> str | None:
        """Say why the request of a record cannot have its adapters here, or give None."""
        reason = other_adapter(request, self.engine.adapters)
        return None if reason is None else f"{journal.path} was made with an adapter: {reason}"

    def environment(self) -> dict[str, Any]:
        """Everything besides the request and the machine that can change a bit: engine, model, versions, threads."""
        from importlib.metadata import version  # takes 30 ms, and only records ask

        if self._environment is None:
            self._environment = {
                **self.engine.environment(),
                "model": model_fingerprint(self.folder) if self.folder else "",
                "tokenizer": tokenizer_fingerprint(self.folder) if self.folder else "",
                "tokenizers": version("tokenizers"),
                "source": self.source,
                **({"lora": dict(self._adapter_paths)} if self._adapter_paths else {}),
            }
        return dict(self._environment)

    def result(self, run: Run[Generation]) -> GenerationResult:
        """What a run has generated so far; a row that has not ended has no finish reason."""
        return result_of(run, self.tokenizer)

    @property
    def free_rows(self) -> int:
        """How many rows can be started now; runs that have not ended hold the others."""
        return self.engine.kv_cache.free

    def candidates(self, run: Run[Generation], row: int = 0, *, count: int = 10) -> list[Candidate]:
        """The likeliest next tokens of a run at rest: what its next Sample, or its last one, draws from.

        They belong to the logits that are there: those of the next token from Prefill or Decode to Sample, those of
        the token just drawn from Sample to Decode.

        Raises
        ------
        RequestError
            When there are no logits: before Prefill, after the row has ended, while the run is under way.
        """
        return next_candidates(run, row, self.tokenizer, count=count)

    def close(self) -> None:
        """Give the engine's memory back."""
        if not self._closed:
            self._closed = True
            if self.prompt_cache is not None:
                self.prompt_cache.close()
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _refused_plainly() -> Iterator[None]:
    """Let a request that a phase refuses be what it is to whoever asked for text, not a failure of that phase."""
    try:
        yield
    except PhaseError as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        raise


def _bound_to(engine: Engine, folder: Path) -> dict[str, Any]:
    """All that can change a bit of what a prompt leaves in a cache, but for the prompt: not who shares the engine."""
    of_engine = {name: value for name, value in engine.environment().items() if name != "rows"}
    return {**of_engine, "model": model_fingerprint(folder)}


def _defaults(folder: Path, *, strict: bool) -> SamplingParams:
    """What the checkpoint's generation_config.json asks for, if it has one."""
    path = folder / "generation_config.json"
    if not path.exists():
        return SamplingParams()
    config = read_object(path)
    try:
        params = params_of(config)
    except RequestError as error:
        raise CheckpointError(f"{one_line(path)} cannot be used: {error}; correct it or take it out") from error
    if odd := not_honoured(config):
        words = f"{one_line(path)} asks for {one_line(', '.join(odd))}, which is not honoured"
        if strict:
            raise CheckpointError(f"{words}: take it out, or load without strict")
        warnings.warn(words, IgnoredSettings, stacklevel=3)
    return params
