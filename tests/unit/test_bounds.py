"""What is looked up of runs stays small in time and memory, whatever was put into them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256

import pytest

from app.domain import Step, Value, now
from app.journal import replay as replay_module
from app.journal.recorder import Recorder
from app.journal.replay import Done, Replay, ReplayDiverged, Rerun, unfolded
from app.usecases import lineage
from app.usecases.traces import _matched

SOON = 20.0


def step(seq: int, path: str, given: bytes = b"") -> Step:
    return Step(seq, path, "llm", path, "completed", now(), input_hash=given)


def names_of(bodies: Sequence[bytes]) -> Mapping[str, bytes]:
    return {Value.of(body).digest.hex(): body for body in bodies}


def test_a_text_full_of_names_of_texts_full_of_names_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "UNFOLDED_BYTES", 100_000)
    parts: dict[str, bytes] = {}
    body = b'"the last"'
    for _ in range(3):
        parts |= (new := names_of([body]))
        body = json.dumps([*new] * 300).encode()
    assert len(json.dumps(unfolded(json.loads(body), parts))) < 10_000_000


def test_what_diverges_in_long_inputs_is_told_soon() -> None:
    told = json.dumps([number % 400 for number in range(60_000)], indent=1)
    other = json.dumps([number * 7 % 401 for number in range(60_000)]).encode()
    before = Done(1, "/fetch", "step", sha256(b"x").digest(), b"page")
    recorder = Recorder(replay=Replay([before], Rerun(told=lambda _: told)))
    begun = time.monotonic()
    with pytest.raises(ReplayDiverged, match="recorded"):
        recorder.step("step", "fetch", input=other)
    assert time.monotonic() - begun < SOON


def test_long_runs_of_different_steps_are_compared_soon() -> None:
    ours = [step(seq, f"/{seq}", b"a") for seq in range(1, 10_001)]
    theirs = [step(seq, f"/{seq}", b"b" if seq % 2 else b"a") for seq in range(10_000, 0, -1)]
    others = [step(seq, f"/other {seq}") for seq in range(1, 10_001)]
    begun = time.monotonic()
    assert all(one and other and one.path == other.path for one, other in _matched(ours, theirs))
    assert sum(other is None for _, other in _matched(ours, others)) == 10_000
    assert time.monotonic() - begun < SOON


def test_a_sentence_that_came_through_many_steps_is_explained_soon() -> None:
    many = range(1, 301)
    made = {seq: f"what step number {seq} has said, and no other" for seq in many}
    given = {seq: [made[before] for before in range(1, seq)] for seq in many}
    begun = time.monotonic()
    found = lineage._Acts([step(seq, "/a") for seq in many], given, made).first_with(made[300])
    assert time.monotonic() - begun < SOON
    assert found[0].seq == 300
    assert len({source.seq for source in found}) == len(found) <= lineage.MAX_SOURCES


def test_a_served_call_that_is_still_read_is_not_billed_as_one_that_goes_on() -> None:
    before = Done(1, "/small", "llm", sha256(b"x").digest(), b"{}")
    recorder = Recorder(replay=Replay([before], Rerun()))
    with recorder.step("llm", "small", input=b"x", parts=[Value.of(b"a long question")]):
        assert recorder.bill() == []
