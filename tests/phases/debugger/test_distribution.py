"""The candidates that are shown are those that tokens are drawn from."""

import numpy as np
import pytest

from gpu.sampling import candidates
from phases.debugger.distribution import NoDistribution
from phases.debugger.generation import GenerationSession


def test_what_is_shown_is_what_is_drawn_from(session: GenerationSession) -> None:
    drawn_from: dict[int, list[tuple[int, float]]] = {}
    seen = set()
    with pytest.raises(NoDistribution, match="Prefill makes the first"):
        session.distribution()
    while session.run.phase.name != "detokenize":
        session.step()
        if session.run.phase.name == "prefill":
            continue
        context = session.run.context
        if not context.live:
            with pytest.raises(NoDistribution, match="row 0 has ended: nothing more is drawn"):
                session.distribution()
            continue
        shown = session.distribution()
        seen.add((session.run.phase.name, shown.drawn is None))
        chances = [(found.token_id, found.chance) for found in shown.candidates]
        assert drawn_from.setdefault(shown.place, chances) == chances
        assert sum(found.chance for found in shown.candidates) == pytest.approx(1)
        assert all(bool(found.chance) == (not found.removed) for found in shown.candidates)
        if shown.drawn is not None:
            assert shown.drawn == context.tokens(0)[-1]
            assert dict(chances)[shown.drawn] > 0
    assert seen == {("sample", True), ("decode", False), ("check_stop", True), ("check_stop", False)}


def test_each_cut_is_named(session: GenerationSession) -> None:
    session.step(2)
    context = session.run.context
    logits = context.bound_engine.read_logits(context.slots[0])
    removed: dict[str, set[int]] = {}
    for found in session.distribution().candidates:
        removed.setdefault(found.removed, set()).add(found.token_id)
    stages = [
        {"top_k": 20, "top_p": 1.0, "min_p": 0.0}, {"top_k": 20, "top_p": 0.9, "min_p": 0.0},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    ]  # fmt: skip
    kept = [set(candidates(logits, temperature=1.1, **stage).token_ids.tolist()) for stage in stages]
    assert removed[""] == kept[2]
    assert removed.get("min-p", set()) == kept[1] - kept[2]
    assert removed["top-p"] == kept[0] - kept[1]
    assert removed["top-k"].isdisjoint(kept[0])
    session.set("temperature", "0")
    shown = session.distribution()
    assert [found.token_id for found in shown.candidates if not found.removed] == [int(np.argmax(logits))]
    assert {found.removed for found in shown.candidates} == {"", "temperature"}
