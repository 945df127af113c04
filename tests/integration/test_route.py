"""Routing: by weight, past what fails, within one budget of hits, and never two models' text in one answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from app.errors import InvalidInput, LLMError, LLMRejected, LLMUnavailable, NotFound
from app.journal.recorder import Recorder
from app.llm import endpoints
from app.llm.refusals import UpstreamAuth, UpstreamUnpaid
from app.llm.route import MAX_HITS
from app.llm.upstream import Deadlines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.paths import Models, catalog_of, model, open_models, run_llm

NOBODY = "http://127.0.0.1:1/v1"
"""Refuses connections."""
SLOW = "hi [[fault: chunks=1000 delay=0.05]]"
FOREVER = 10**6


@pytest.fixture
async def one() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def two() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def three() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


def hits(*fakes: FakeUpstream) -> list[int]:
    return [fake.hits for fake in fakes]


async def ask(models: Models, text: str = "say hello there", recorder: Recorder | None = None, **options: Any) -> str:
    return await run_llm(models.path, recorder or Recorder()).ainvoke(text, **options)


async def test_endpoints_are_asked_in_turn_by_their_weight(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream
) -> None:
    async with open_models(
        catalog_of(tmp_path, model("default", f"{one.base_url}, weight = 2", two.base_url))
    ) as models:
        for _ in range(3):
            await ask(models)
        assert hits(one, two) == [2, 1]
        for _ in range(6):
            await ask(models)
    assert hits(one, two) == [6, 3]


async def test_an_endpoint_that_is_full_is_passed_over(tmp_path: Path, one: FakeUpstream, two: FakeUpstream) -> None:
    full = f"{one.base_url}, max_concurrency = 1, weight = 100"
    async with open_models(catalog_of(tmp_path, model("default", full, two.base_url))) as models:
        reply = await run_llm(models.path, Recorder()).acall(SLOW)
        assert [await ask(models) for _ in range(4)] == ["hello there"] * 4
        assert hits(one, two) == [1, 4]
        await reply.close()
        await ask(models)
        assert hits(one, two) == [2, 4]


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "429 retry-after=50", "402", "404", "html", "refuse", "cut after=0"]
)
async def test_another_endpoint_answers_for_one_that_fails_before_its_first_token(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream, fault: str
) -> None:
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, model("default", one.base_url, two.base_url))) as models:
        one.fail(fault)
        assert await ask(models, recorder=recorder) == "hello there"
    assert hits(one, two) == [1, 1]
    (step,) = recorder.steps
    assert (step.status, step.model, step.usage.total) == ("completed", "default-1", 5)
    assert b'"failures":["' in (step.output or b"")


async def test_an_empty_answer_is_paid_for_and_asked_for_once(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream
) -> None:
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, model("default", one.base_url, two.base_url))) as models:
        one.fail("empty")
        with pytest.raises(LLMError, match="empty answer"):
            await ask(models, recorder=recorder)
    assert hits(one, two) == [1, 0]
    assert recorder.steps[0].usage.prompt > 0


async def test_a_server_that_is_not_there_is_stood_in_for(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(catalog_of(tmp_path, model("default", NOBODY, one.base_url))) as models:
        for _ in range(4):
            assert await ask(models) == "hello there"
    assert one.hits == 4


async def test_a_server_that_never_begins_is_stood_in_for(tmp_path: Path, one: FakeUpstream, two: FakeUpstream) -> None:
    catalog = catalog_of(tmp_path, model("default", one.base_url, two.base_url))
    async with open_models(catalog, deadlines=Deadlines(first_token=0.2)) as models:
        one.fail("hang")
        assert await ask(models) == "hello there"
        await one.until(lambda: one.aborted == 1)
    assert hits(one, two) == [1, 1]


async def test_a_server_that_never_begins_is_asked_once(tmp_path: Path, one: FakeUpstream, two: FakeUpstream) -> None:
    text = model("default", one.base_url, fallback='["big"]') + model("big", two.base_url)
    async with open_models(catalog_of(tmp_path, text), deadlines=Deadlines(first_token=0.2)) as models:
        one.fail("hang", times=FOREVER)
        two.fail("500", times=FOREVER)
        with pytest.raises(LLMError):
            await ask(models)
        assert hits(one, two) == [1, 2], "only the other is asked once more"
        models.catalog = catalog_of(tmp_path, model("default", one.base_url))
        with pytest.raises(LLMUnavailable, match="did not begin to answer in time"):
            await ask(models)
    assert hits(one, two) == [2, 2]


async def test_an_endpoint_has_as_long_to_begin_as_the_file_says_now(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(
        catalog_of(tmp_path, model("default", one.base_url)), deadlines=Deadlines(first_token=0.2)
    ) as models:
        one.fail("first=0.6", times=FOREVER)
        with pytest.raises(LLMUnavailable, match="did not begin to answer in time"):
            await ask(models)
        models.catalog = catalog_of(tmp_path, model("default", f"{one.base_url}, first_token_seconds = 30"))
        assert await ask(models) == "hello there"
        assert len(await run_llm(models.path, Recorder()).embed(["a text"])) == 1
    assert one.hits == 3


async def test_once_a_token_has_come_nobody_else_is_asked(tmp_path: Path, one: FakeUpstream, two: FakeUpstream) -> None:
    text = model("default", one.base_url, two.base_url, fallback='["big"]') + model("big", two.base_url)
    async with open_models(catalog_of(tmp_path, text)) as models:
        one.fail("error")
        reply = await run_llm(models.path, Recorder()).acall("say one two three")
        with pytest.raises(LLMError, match="overloaded"):
            await reply.text()
        assert "".join(chunk.content for chunk in await reply.since(0)) == "one two "
        assert hits(one, two) == [1, 0]
        two.fail("drop")
        cut = await run_llm(models.path, Recorder()).ainvoke("say one two three")
        assert (cut, cut.finish_reason) == ("one two ", "cut")
    assert hits(one, two) == [1, 1]


@pytest.mark.parametrize(
    ("urls", "fallbacks", "expected"),
    [
        (["one"], [], [MAX_HITS, 0, 0]),
        (["one", "two"], [], [1, 2, 0]),
        (["one"], ["two"], [2, 1, 0]),
        (["one", "two"], ["three"], [1, 1, 1]),
        (["one"], ["two", "three"], [1, 1, 1]),
        (["one"], ["two", "three", "one"], [1, 1, 1]),
    ],
)
async def test_one_budget_of_hits_holds_over_endpoints_fallbacks_and_repetitions(
    tmp_path: Path,
    one: FakeUpstream,
    two: FakeUpstream,
    three: FakeUpstream,
    urls: Sequence[str],
    fallbacks: Sequence[str],
    expected: list[int],
) -> None:
    fakes = {"one": one, "two": two, "three": three}
    for fake in fakes.values():
        fake.fail("500", times=FOREVER)
    names = [f"m{at}" for at in range(len(fallbacks))]
    text = model("default", *(fakes[name].base_url for name in urls), fallback=repr(names).replace("'", '"'))
    text += "".join(model(name, fakes[place].base_url) for name, place in zip(names, fallbacks, strict=True))
    async with open_models(catalog_of(tmp_path, text)) as models:
        with pytest.raises(LLMError) as raised:
            await ask(models)
    assert raised.value.status == 502
    assert hits(*fakes.values()) == expected


async def test_a_short_retry_after_is_waited_for(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        one.fail("429 retry-after-ms=600")
        began = monotonic()
        assert await ask(models) == "hello there"
    assert monotonic() - began >= 0.55
    assert one.hits == 2


async def test_a_server_that_knows_no_such_model_is_not_asked_again(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        one.fail("404", times=2)
        with pytest.raises(LLMUnavailable, match="no such address or model"):
            await ask(models)
    assert one.hits == 1


async def test_a_long_retry_after_is_told_at_once_and_nobody_asks_until_then(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        one.fail("429 retry-after=60")
        with pytest.raises(LLMUnavailable) as raised:
            await ask(models)
        assert raised.value.retry_after == 60
        with pytest.raises(LLMUnavailable, match="slow down") as raised:
            await ask(models)
        assert 50 < (raised.value.retry_after or 0) <= 62
    assert one.hits == 1


async def test_without_a_retry_after_a_busy_server_is_asked_again(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        one.fail("429", times=2)
        assert await ask(models) == "hello there"
        one.fail("429", times=MAX_HITS)
        with pytest.raises(LLMUnavailable, match="busy"):
            await ask(models)
    assert one.hits == 3 + MAX_HITS


async def test_an_endpoint_that_failed_rests_and_then_comes_back(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream
) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url, two.base_url))) as models:
        one.fail("500")
        for _ in range(4):
            await ask(models)
        assert hits(one, two) == [1, 4]
        await asyncio.sleep(1.1)
        for _ in range(4):
            await ask(models)
        assert one.hits >= 3


async def test_a_fallback_answers_first_while_the_others_rest(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream
) -> None:
    text = model("default", one.base_url, fallback='["big"]') + model("big", two.base_url)
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, text)) as models:
        one.fail("500", times=2)
        for _ in range(4):
            assert await ask(models, recorder=recorder) == "hello there"
        assert hits(one, two) == [1, 4]
        assert {step.model for step in recorder.steps} == {"big-0"}
        two.fail("500")
        await ask(models)
        assert hits(one, two) == [3, 5], "at last those that rest are asked too"


async def test_fallbacks_of_fallbacks_are_asked_in_order(tmp_path: Path, one: FakeUpstream, two: FakeUpstream) -> None:
    text = model("default", NOBODY, fallback='["mid"]') + model("mid", one.base_url, fallback='["big"]')
    async with open_models(catalog_of(tmp_path, text + model("big", two.base_url))) as models:
        one.fail("500")
        assert await ask(models) == "hello there"
    assert hits(one, two) == [1, 1]


async def test_a_conversation_that_is_too_long_goes_to_a_model_that_holds_it(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream
) -> None:
    text = model("default", one.base_url, fallback='["big"]', context="50") + model("big", two.base_url, context="500")
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, text)) as models:
        await ask(models)
        await ask(models, "say " + "word " * 100, recorder)
        with pytest.raises(LLMRejected, match="longer than"):
            await ask(models, "say " + "word " * 1000)
    assert hits(one, two) == [1, 1]
    assert [(step.name, step.model) for step in recorder.steps] == [("default", "big-0")]


@pytest.mark.parametrize("status", ["401", "403 message=No_permission."])
async def test_a_server_that_refuses_our_key_is_left_out_and_the_others_go_on(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    keyed = f'{one.base_url}, api_key_env = "KEY_A"'
    async with open_models(catalog_of(tmp_path, model("default", keyed, two.base_url), KEY_A="sk-bad")) as models:
        one.fail(status, times=FOREVER)
        for _ in range(5):
            assert await ask(models) == "hello there"
        (spec, _) = models.catalog.get().endpoints
        assert models.endpoints.of(spec).refused == "The language model's server does not accept the key in KEY_A."
    assert hits(one, two) == [1, 5]
    assert [record.levelname for record in caplog.records if "KEY_A" in record.message] == ["WARNING"]


async def test_a_refused_key_is_our_fault_and_not_the_callers(tmp_path: Path) -> None:
    async with upstream("sk-good") as fake:
        text = model("default", f'{fake.base_url}, api_key_env = "KEY_A"')
        async with open_models(catalog_of(tmp_path, text, KEY_A="sk-bad")) as models:
            for _ in range(2):
                with pytest.raises(UpstreamAuth, match="KEY_A") as raised:
                    await ask(models)
                assert (raised.value.status, raised.value.code) == (503, "upstream_auth")
                assert "sk-" not in str(raised.value)
            assert fake.hits == 1
            models.catalog = catalog_of(tmp_path, text, KEY_A="sk-good")
            assert await ask(models) == "hello there"
            models.catalog = catalog_of(tmp_path, text, KEY_A="sk-worse")
            with pytest.raises(UpstreamAuth):
                await ask(models)
    assert fake.hits == 3


async def test_a_refused_endpoint_is_asked_again_after_a_while(
    tmp_path: Path, one: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "REFUSED_SECONDS", 0.6)
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        one.fail("401")
        with pytest.raises(UpstreamAuth):
            await ask(models)
        await asyncio.sleep(0.6)
        assert await ask(models) == "hello there"
        (spec,) = models.catalog.get().endpoints
        assert models.endpoints.of(spec).refused is None


@pytest.mark.parametrize("fault", ["402 message=Insufficient_Balance.", "429 code=insufficient_quota retry-after=1"])
async def test_a_server_without_credit_is_asked_once_and_told_of_once(
    tmp_path: Path, one: FakeUpstream, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    keyed = f'{one.base_url}, api_key_env = "KEY_A"'
    async with open_models(catalog_of(tmp_path, model("default", keyed), KEY_A="sk-mine")) as models:
        assert await ask(models) == "hello there"
        (spec,) = models.catalog.get().endpoints
        limiter = models.endpoints.of(spec).limiter
        before = limiter.limit
        one.fail(fault, times=FOREVER)
        for hits in (2, 3):
            with pytest.raises(UpstreamUnpaid, match="no credit"):
                await ask(models)
            assert (one.hits, limiter.limit) == (hits, before)
        (warning,) = caplog.records
        assert (warning.levelname, one.base_url in warning.message) == ("WARNING", True)
        assert "sk-" not in warning.message
        one.fail("500", times=0)
        assert await ask(models) == "hello there"
        one.fail(fault)
        with pytest.raises(UpstreamUnpaid):
            await ask(models)
        assert len(caplog.records) == 2


@pytest.mark.parametrize("status", ["400", "403", "413", "422"])
async def test_a_request_that_was_rejected_is_asked_of_nobody_else(
    tmp_path: Path, one: FakeUpstream, two: FakeUpstream, status: str
) -> None:
    text = model("default", one.base_url, two.base_url, fallback='["big"]') + model("big", two.base_url)
    async with open_models(catalog_of(tmp_path, text)) as models:
        one.fail(f"{status} message=Too_many_cooks.")
        with pytest.raises(LLMRejected, match="Too many cooks"):
            await ask(models)
    assert hits(one, two) == [1, 0]


async def test_a_403_for_one_request_takes_the_server_from_nobody(
    tmp_path: Path, one: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        with pytest.raises(LLMRejected, match="flagged") as raised:
            await ask(models, "say bad things [[fault: 403 message=Your_input_was_flagged.]]")
        assert (raised.value.status, raised.value.code) == (502, "llm_rejected")
        assert await ask(models) == "hello there"
    assert (one.hits, caplog.records) == (2, [])


async def test_a_server_that_is_away_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = "http://127.0.0.1:1/v1"
    async with open_models(catalog_of(tmp_path, model("default", nowhere))) as models:
        for _ in range(2):
            with pytest.raises(LLMUnavailable, match="refused the connection"):
                await ask(models)
    (told,) = caplog.records
    assert told.getMessage().startswith(f"{nowhere} does not answer for ")


async def test_an_unknown_alias_is_told_with_those_that_are_known(tmp_path: Path, one: FakeUpstream) -> None:
    async with open_models(catalog_of(tmp_path, model("default", one.base_url) + model("big", one.base_url))) as models:
        with pytest.raises(NotFound, match="known are default, big") as raised:
            await ask(models, model="huge")
    assert (raised.value.status, raised.value.param, one.hits) == (404, "model", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", 0),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", 10**9),
        ("stop", []),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {str(at): 1 for at in range(301)}),
        ("base_url", "http://127.0.0.1:2/v1"),
        ("api_key", "sk-mine"),
        ("api_base", "http://127.0.0.1:2/v1"),
        ("extra_headers", {"authorization": "Bearer x"}),
        ("model", 7),
        ("cache", "sometimes"),
        ("accept", True),
    ],
)
async def test_an_option_that_cannot_be_reaches_no_server(
    tmp_path: Path, one: FakeUpstream, name: str, value: object
) -> None:
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, model("default", one.base_url))) as models:
        with pytest.raises(InvalidInput, match=name) as raised:
            await run_llm(models.path, recorder).ainvoke("hi", **{name: value})
    assert raised.value.param == name
    assert (one.hits, list(recorder.steps)) == (0, [])
