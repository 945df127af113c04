"""Every fault of an upstream, against a real server."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from app.domain import Chunk, Usage
from app.errors import InvalidInput, LLMError, LLMRejected, LLMUnavailable
from app.journal.log import joined
from app.llm.llm import Finish
from app.llm.upstream import Deadlines, Upstream
from tests.fakes.upstream import FakeUpstream, upstream

KEY = "sk-very-secret-0123456789"


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream(KEY) as server:
        yield server


@pytest.fixture
async def client(fake: FakeUpstream) -> AsyncIterator[Upstream]:
    client = Upstream(fake.base_url, KEY)
    yield client
    await client.close()


async def ask(client: Upstream, text: str = "say one two 三 four", model: str = "fake") -> tuple[str, Finish]:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    *chunks, finish = [item async for items in client.stream(body) for item in items]
    assert isinstance(finish, Finish)
    return "".join(chunk.content for chunk in chunks if isinstance(chunk, Chunk)), finish


async def test_an_answer_comes_in_chunks_and_ends_with_exact_usage(fake: FakeUpstream, client: Upstream) -> None:
    items = [
        item
        async for items in client.stream({"model": "m", "messages": [{"role": "user", "content": "say a b"}]})
        for item in items
    ]
    assert joined(item for item in items if isinstance(item, Chunk)) == [Chunk("a b")]
    assert items[-1] == Finish("stop", Usage(3, 2), "m")
    assert fake.requests[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "say a b"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    "fault", ["bytes", "crlf", "comments", "whole", "first=0.05", "delay=0.01", "think", "refusal", "details"]
)
async def test_harmless_habits_of_servers_change_nothing(client: Upstream, fault: str) -> None:
    text, finish = await ask(client, model=f"fault:{fault}")
    assert text.removeprefix("Let me think.") == "one two 三 four"
    assert finish.reason == "stop"
    assert (finish.usage.prompt, finish.usage.completion, finish.usage.estimated) == (5, 4, False)
    assert (finish.usage.cached, finish.usage.reasoning) == ((1, 2) if fault == "details" else (0, 0))


@pytest.mark.parametrize("fault", ["no_usage", "bad_usage"])
async def test_missing_or_negative_usage_is_counted_here(client: Upstream, fault: str) -> None:
    text, finish = await ask(client, model=f"fault:{fault}")
    assert text == "one two 三 four"
    assert finish.usage.estimated
    assert finish.usage.prompt > 0
    assert finish.usage.completion > 0


@pytest.mark.parametrize("fault", ["cut", "drop", "reset", "unfinished_line"])
async def test_a_stream_that_breaks_off_ends_as_cut_with_what_came(client: Upstream, fault: str) -> None:
    text, finish = await ask(client, model=f"fault:{fault}")
    assert (text, finish.reason, finish.usage.estimated) == ("one two ", "cut", True)
    assert finish.usage.total > 0


async def test_a_stream_cut_after_its_last_word_is_cut_all_the_same(client: Upstream) -> None:
    text, finish = await ask(client, "say hello [[fault: cut]]")
    assert (text, finish.reason) == ("hello", "cut")


async def test_done_without_a_reason_is_an_end(client: Upstream) -> None:
    text, finish = await ask(client, model="fault:cut_done")
    assert (text, finish.reason) == ("one two ", "stop")


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        ("400 message=Too_many_images.", LLMRejected, "refused the request: Too many images."),
        ("413", LLMRejected, "Something is wrong."),
        ("422", LLMRejected, "Something is wrong."),
        ("403 message=Your_input_was_flagged.", LLMRejected, "refused the request: Your input was flagged."),
        ("403 message=The_key_is_disabled.", LLMUnavailable, "OPENAI_API_KEY"),
        ("404", LLMUnavailable, "check the model's name, and base_url or OPENAI_BASE_URL"),
        ("307", LLMUnavailable, "OPENAI_BASE_URL"),
        ("429", LLMUnavailable, "slow down"),
        ("500", LLMError, "status 500"),
        ("503", LLMUnavailable, "not available"),
        ("garbage after=0", LLMError, "not of the OpenAI protocol"),
        ("garbage", LLMError, "not of the OpenAI protocol"),
        ("error after=0", LLMError, "failed: The engine is overloaded."),
        ("error", LLMError, "failed: The engine is overloaded."),
        ("long_line", LLMError, "too long"),
        ("html", LLMError, "web page"),
        ("empty_body", LLMError, "answered nothing"),
        ("empty", LLMError, "empty answer"),
        ("cut after=0", LLMUnavailable, "broke off before the answer began"),
        ("drop after=0", LLMUnavailable, "broke off before the answer began"),
        ("refuse", LLMUnavailable, "closed the connection"),
    ],
)
async def test_each_fault_is_one_clear_sentence(
    client: Upstream, fault: str, kind: type[LLMError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        await ask(client, f"say one two three [[fault: {fault}]]")
    assert KEY not in repr(caught.value.to_dict())
    assert await ask(client, "say again")  # and the next call is well


@pytest.mark.parametrize("key", [None, "sk-wrong-0123456789"])
async def test_a_refused_key_names_the_setting_and_never_shows(fake: FakeUpstream, key: str | None) -> None:
    client = Upstream(fake.base_url, key)
    with pytest.raises(LLMUnavailable, match="OPENAI_API_KEY") as caught:
        await ask(client)
    await client.close()
    assert (caught.value.code, caught.value.status) == ("upstream_auth", 503)
    assert "sk-" not in f"{caught.value!r} {client!r} {vars(caught.value)}"


@pytest.mark.parametrize(
    ("fault", "least", "most"),
    [("retry-after=7", 7, 7), ("retry-after=1.5", 1.5, 1.5), ("retry-after-ms=250", 0.25, 0.25), ("date=60", 30, 60)],
)
async def test_429_carries_when_to_try_again(client: Upstream, fault: str, least: float, most: float) -> None:
    with pytest.raises(LLMUnavailable) as caught:
        await ask(client, f"hi [[fault: 429 {fault}]]")
    assert caught.value.retry_after is not None
    assert least <= caught.value.retry_after <= most


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "1e400", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_an_absurd_retry_after_is_ignored(fake: FakeUpstream, client: Upstream, value: str) -> None:
    fake.fail("429", headers={"Retry-After": value})
    with pytest.raises(LLMUnavailable) as caught:
        await ask(client)
    assert caught.value.retry_after is None


SHORT = Deadlines(connect=5, first_token=0.3, idle=0.3, total=30)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("hang", "did not begin to answer in time"),
        ("hang after=0", "did not begin to answer in time"),
        ("hang after=2", "stopped in the middle"),
    ],
)
async def test_a_server_that_hangs_is_left_in_time(fake: FakeUpstream, fault: str, sentence: str) -> None:
    client = Upstream(fake.base_url, KEY, deadlines=SHORT)
    with pytest.raises(LLMUnavailable, match=sentence):
        await ask(client, f"say one two three [[fault: {fault}]]")
    await fake.until(lambda: fake.aborted == 1)
    await client.close()


async def test_the_total_deadline_ends_an_answer_that_never_does(fake: FakeUpstream) -> None:
    client = Upstream(fake.base_url, KEY, deadlines=Deadlines(total=0.5))
    with pytest.raises(LLMUnavailable, match="stopped in the middle"):
        await ask(client, "hi [[fault: chunks=100000 delay=0.02]]")
    await fake.until(lambda: fake.aborted == 1)
    await client.close()


async def test_a_reader_that_takes_its_time_breaks_no_deadline(fake: FakeUpstream) -> None:
    client = Upstream(fake.base_url, KEY, deadlines=SHORT)
    body = {"model": "m", "messages": [{"role": "user", "content": "say a b c [[fault: chunks=3 delay=0.05]]"}]}
    seen = []
    async for items in client.stream(body):
        seen += items
        await asyncio.sleep(0.4)
    assert isinstance(seen[-1], Finish)
    assert seen[-1].reason == "stop"
    await client.close()


async def test_an_endless_answer_is_bounded(fake: FakeUpstream) -> None:
    client = Upstream(fake.base_url, KEY, max_bytes=20_000)
    with pytest.raises(LLMError, match="too long"):
        await ask(client, "hi [[fault: chunks=1000]]")
    await client.close()


async def test_no_server_at_all_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        client = Upstream(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with pytest.raises(
            LLMUnavailable, match="refused the connection: check its address, base_url or OPENAI_BASE_URL"
        ):
            await ask(client)
        assert not await client.ping()
        await client.close()


async def test_an_unknown_host_is_one_clear_sentence() -> None:
    client = Upstream("http://no-such-host.invalid/v1")
    with pytest.raises(LLMUnavailable, match="OPENAI_BASE_URL"):
        await ask(client)
    await client.close()


async def test_leaving_the_stream_frees_the_upstream_at_once(fake: FakeUpstream, client: Upstream) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi [[fault: chunks=1000 delay=0.05]]"}]}
    stream = client.stream(body)
    await anext(stream)
    await stream.aclose()
    await fake.until(lambda: fake.aborted == 1)
    assert fake.connected == 0


@pytest.mark.parametrize("fault", ["hang", "chunks=1000 delay=0.05"])
async def test_a_cancelled_call_frees_the_upstream_at_once(fake: FakeUpstream, client: Upstream, fault: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask(client, f"hi [[fault: {fault}]]")
    await fake.until(lambda: fake.aborted == 1)


async def test_calls_one_after_another_share_a_connection(fake: FakeUpstream, client: Upstream) -> None:
    for _ in range(20):
        await ask(client)
    assert (fake.connections, fake.completed) == (1, 20)


async def test_many_calls_at_once_keep_their_answers_apart(fake: FakeUpstream, client: Upstream) -> None:
    answers = await asyncio.gather(*(ask(client, f"say {index} and {index}") for index in range(50)))
    assert [text for text, _ in answers] == [f"{index} and {index}" for index in range(50)]
    assert fake.completed == 50


async def test_closing_closes_the_connections_and_a_later_call_opens_new_ones(
    fake: FakeUpstream, client: Upstream
) -> None:
    await ask(client)
    await client.close()
    await client.close()
    await fake.until(lambda: fake.connected == 0)
    await ask(client)


async def test_ping_tells_whether_the_key_is_accepted(fake: FakeUpstream, client: Upstream) -> None:
    stranger = Upstream(fake.base_url, "wrong")
    assert await client.ping()
    assert not await stranger.ping()
    await stranger.close()


@pytest.mark.parametrize("url", ["", "ftp://x/v1", "example.com", "http://", "http://user:pass@host/v1", "http://[/"])
async def test_an_address_that_is_none_is_refused_or_the_default(url: str) -> None:
    if not url:
        assert repr(Upstream(url)) == "Upstream('https://api.openai.com/v1')"
        return
    with pytest.raises(InvalidInput) as caught:
        Upstream(url)
    assert caught.value.param == "base_url"


@pytest.mark.parametrize("key", ["a\nb", "ключ", "a\0"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Upstream("http://127.0.0.1/v1", key)
    assert (caught.value.param, key in str(caught.value)) == ("api_key", False)


@pytest.mark.parametrize("content", ["\ud800", object()])
async def test_what_json_cannot_express_is_refused(client: Upstream, content: object) -> None:
    with pytest.raises(InvalidInput):
        [
            item
            async for items in client.stream({"model": "m", "messages": [{"role": "user", "content": content}]})
            for item in items
        ]


async def test_a_conversation_is_answered_from_its_history(client: Upstream) -> None:
    messages = [
        {"role": "user", "content": "My name is Ann."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What was the first thing I said?"},
    ]
    items = [item async for items in client.stream({"model": "m", "messages": messages}) for item in items]
    assert "".join(item.content for item in items if isinstance(item, Chunk)) == "My name is Ann."


@pytest.fixture
def process() -> Iterator[str]:
    """The base URL of a fake upstream in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.upstream", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()
    assert server.returncode == 0


def test_connections_end_with_their_event_loop(process: str) -> None:
    client = Upstream(process)
    for _ in range(2):
        assert asyncio.run(ask(client))[0] == "one two 三 four"


async def test_faults_of_a_process_are_set_and_seen_over_http(process: str) -> None:
    client, root = Upstream(process), process.removesuffix("/v1")
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{root}/_faults", json={"fault": "500", "times": 1}) as response:
            assert response.status == 200
        with pytest.raises(LLMError, match="500"):
            await ask(client)
        assert (await ask(client))[0] == "one two 三 four"
        async with session.get(f"{root}/_stats") as response:
            stats = await response.json()
    await client.close()
    assert (stats["hits"], stats["completed"], stats["requests"][1]["body"]["model"]) == (2, 2, "fake")
