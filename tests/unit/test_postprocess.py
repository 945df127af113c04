"""Whatever pieces an answer comes in, its post-processors make the same of it."""

import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from app.agent import (
    BasePostprocess,
    Completion,
    DynamicTypePP,
    Feed,
    FilterPP,
    JsonKeyExtractorPP,
    PatternMatcherPP,
    ReplacePP,
    SplitterPP,
    TypeMapperPP,
)
from app.agent.postprocess import Flow
from app.errors import AgentFailed, AppError, InvalidInput, LLMError

PATTERNS = [
    r"\d+", r"<t>.*?</t>", r"(?s)<t>.*?</t>", r"a.*?b|a", r"(?s)a.*b", r"ab*", r"x*", r"a{2,3}", r"[^\s]+", r"\n\n", r"(?i)FOO",
    r"foo(?!bar)", r"(?=ab)a", r"(?=(a+))b?a", r"(?<=a)b", r"(?<!a)b", r"(?<=\bfo)o", r"(?!\bab)a", r"(?!a$)a", r"a(?=\s*$)",
    r"\bfoo\b", r"\Ba", r"a\b-?", r"o$", r"(?m)^a+$", r"\s+$", r"a\Z", r"^a", r"[$]a|\$b", r"(?:a|ab)(?:c|bcd)?(?=d|$)",
    r"a(?=$)", r"(?=a\b)a",
    r"(a)(b)?\1", r"(?>a+)b", r"a++b", r"\w+@\w+", r"\p{Lu}+", r"(?:foo){e<=1}",
]  # fmt: skip
"""Greedy and lazy, looking ahead and behind, at the ends of words, lines and texts, and approximate."""

pieces = st.lists(st.integers(0, 200), max_size=12)
words = st.lists(st.sampled_from(["foo", "bar", "a", "b", "<t>", "</t>", "\n", " ", "ab", "12", "@", "É"])).map("".join)
texts = words | st.text("abfoFOx <t>/\n12@$-cd", max_size=30)
chains = st.sampled_from(
    [
        ReplacePP({"foo": "a", "ab": ""}) >> FilterPP(pattern=r"\d+"),
        FilterPP("a") >> ReplacePP({"fo": "o", "o": "fo"}) >> SplitterPP("\n"),
        PatternMatcherPP(r"<t>.*?</t>") >> FilterPP(["<t>", "</t>"]) >> ReplacePP({"ab": "12"}) >> DynamicTypePP(),
        JsonKeyExtractorPP("a") >> ReplacePP({"foo": "*"}) >> FilterPP(pattern=r"\d\d"),
    ]
)


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The text in pieces, some of which may be empty."""
    at = sorted(place % (len(text) + 1) for place in places)
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


async def run(postprocessor: BasePostprocess, pieces: Sequence[str]) -> tuple[str, Any]:
    """The text and the value of an answer that came in pieces; or the error, as a text."""
    try:
        flow = Flow(postprocessor)
        said = "".join([flow.feed(piece) for piece in pieces])
        return said + await flow.close(), flow.value
    except AppError as error:
        return f"error: {error}", None


@pytest.mark.parametrize(
    "kind", [lambda pattern: FilterPP(pattern=pattern), lambda p: PatternMatcherPP(p, separator="|")]
)
@settings(max_examples=400, deadline=None)
@given(pattern=st.sampled_from(PATTERNS), text=texts, places=pieces)
async def test_a_pattern_finds_the_same_in_pieces_as_in_the_whole(
    kind: Any, pattern: str, text: str, places: list[int]
) -> None:
    assert await run(kind(pattern), cut(text, places)) == await run(kind(pattern), [text])


@settings(max_examples=200, deadline=None)
@given(pattern=st.sampled_from([pattern for pattern in PATTERNS if pattern != "x*"]), text=texts)
async def test_a_filter_removes_what_the_pattern_finds_in_the_whole_text(pattern: str, text: str) -> None:
    assert (await run(FilterPP(pattern=pattern), [text]))[0] == regex.sub(pattern, "", text)


def test_a_pattern_that_searches_backwards_is_refused() -> None:
    with pytest.raises(InvalidInput, match="searches backwards"):
        FilterPP(pattern="(?r)a+b")


@settings(max_examples=200, deadline=None)
@given(
    replace_map=st.dictionaries(
        st.text("abc", min_size=1, max_size=4), st.text("abX", max_size=3), min_size=1, max_size=5
    ),
    text=st.text("abcd", max_size=40),
    places=pieces,
)
async def test_words_are_replaced_the_same_in_pieces_as_in_the_whole(
    replace_map: dict[str, str], text: str, places: list[int]
) -> None:
    longest_first = "|".join(sorted(map(re.escape, replace_map), key=len, reverse=True))
    expected = re.sub(longest_first, lambda word: replace_map[word[0]], text)
    assert (await run(ReplacePP(replace_map), cut(text, places)))[0] == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[]\n😀é,:', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    value=st.dictionaries(st.sampled_from(["a", "b", "c"]), values),
    ascii=st.booleans(),
    before=st.sampled_from(["", "Here {x}: ```json\n"]),
    end=st.integers(0, 200),
    places=pieces,
)
async def test_keys_are_read_the_same_in_pieces_as_in_the_whole(
    value: dict[str, Any], ascii: bool, before: str, end: int, places: list[int]
) -> None:
    whole = f"{before}{json.dumps(value, ensure_ascii=ascii)} So it is."
    for text in (whole, whole[:end]):
        for extractor in (JsonKeyExtractorPP("a"), JsonKeyExtractorPP(target_keys=["b", "a"])):
            assert await run(extractor, cut(text, places)) == await run(extractor, [text])
    if "a" in value:
        assert (await run(JsonKeyExtractorPP("a"), [whole]))[1] == value["a"]


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab,", max_size=20), separator=st.sampled_from(["", ",", "aa", "ab,"]), places=pieces)
async def test_a_text_is_split_the_same_in_pieces_as_in_the_whole(text: str, separator: str, places: list[int]) -> None:
    expected = text.split(separator) if separator else list(text)
    assert await run(SplitterPP(separator), cut(text, places)) == (text, expected)


@settings(max_examples=100, deadline=None)
@given(target=st.sampled_from([int, list[int], bool]), text=st.text("12[], true", max_size=12), places=pieces)
async def test_values_are_read_the_same_in_pieces_as_in_the_whole(target: Any, text: str, places: list[int]) -> None:
    for reader in (TypeMapperPP(target), DynamicTypePP()):
        assert await run(reader, cut(text, places)) == await run(reader, [text])


@settings(max_examples=200, deadline=None)
@given(chain=chains, text=texts | values.map(lambda value: json.dumps({"a": value})), places=pieces)
async def test_a_chain_makes_the_same_of_pieces_as_of_the_whole(
    chain: BasePostprocess, text: str, places: list[int]
) -> None:
    assert await run(chain, cut(text, places)) == await run(chain, [text])


async def test_a_masked_word_that_is_cut_by_a_chunk_stays_masked() -> None:
    """Of the seeds' faults: masking bypassed over chunk borders."""
    for place in range(len("my secret is")):
        assert (await run(ReplacePP({"secret": "***"}), cut("my secret is", [place])))[0] == "my *** is"


def test_words_stream_but_for_as_much_as_the_longest_could_need() -> None:
    feed = ReplacePP({"secret": "***"}).open()
    assert [feed.feed("the sec"), feed.feed("tor's sec"), feed.feed("ret"), feed.close()] == [
        "th",
        "e sector'",
        "s ***",
        "",
    ]


def test_a_pattern_streams_but_for_what_may_still_match() -> None:
    feed = FilterPP(pattern=r"\d+").open()
    assert [feed.feed("In "), feed.feed("19"), feed.feed("84 it"), feed.feed(" was."), feed.close()] == [
        "In ",
        "",
        " it",
        " was.",
        "",
    ]


def test_the_text_of_a_key_streams_as_it_comes() -> None:
    feed = JsonKeyExtractorPP("sql").open()
    said = [feed.feed(piece) for piece in ('{"n": [1, "}"], "s', 'ql": "SEL', "ECT \\u00", 'e9\\n"', "}")]
    assert said == ["", "SEL", "ECT ", "é\n", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "x", "a": "y"}', "x"),
        ('{"b": {"a": "inner"}, "a": "outer"}', "outer"),
        ('[{"b": 1}, {"a": "second"}]', "second"),
        ('{"a": "line\nend"', "line\nend"),
        ('{"a": {"b": [1, 2', '{"b": [1, 2]}'),
        ('{"a": "\\ud83d\\ude00 \\ud83d!"}', "😀 \ufffd!"),
        ('{"a": "x" "b": 1}', "x"),
    ],
)
async def test_json_is_read_as_models_write_it(text: str, expected: str) -> None:
    assert (await run(JsonKeyExtractorPP("a"), [text]))[0] == expected


async def test_an_answer_without_the_key_says_so() -> None:
    flow = Flow(JsonKeyExtractorPP(target_keys=["sql", "why"]))
    flow.feed("I cannot do that.")
    with pytest.raises(LLMError, match="no JSON with sql, why"):
        await flow.close()


class Point(BaseModel):
    x: int
    y: int = 0


@pytest.mark.parametrize(
    ("postprocessor", "text", "value"),
    [
        (TypeMapperPP(int), " 42\n", 42),
        (TypeMapperPP(date), "2026-11-21", date(2026, 11, 21)),
        (TypeMapperPP(Point), "Here: {'x': 1,}", Point(x=1)),
        (TypeMapperPP(list[str]), '["a"', ["a"]),
        (DynamicTypePP(), "true", True),
        (DynamicTypePP(), "plain words", "plain words"),
        (PatternMatcherPP(r"(\w+)@(\w+)", group=2, separator=" "), "a@b and c@d", ["b", "d"]),
    ],
)
async def test_a_value_is_made_of_the_text(postprocessor: BasePostprocess, text: str, value: Any) -> None:
    assert (await run(postprocessor, list(text)))[1] == value


async def test_a_text_that_is_no_such_value_says_so() -> None:
    flow = Flow(TypeMapperPP(int))
    flow.feed("many")
    with pytest.raises(LLMError, match="is no int"):
        await flow.close()


class Shout(BasePostprocess):
    def process(self, content: str, **kwargs: Any) -> str:
        return content.upper()


class Length(BasePostprocess):
    async def process(self, content: str, **kwargs: Any) -> int:
        return len(content)


class Rated(BasePostprocess):
    def process(self, content: str, **kwargs: Any) -> Completion:
        return Completion(f"{content}!", value=5)


class Vowels(BasePostprocess):
    def open(self) -> Feed:
        return self

    def feed(self, text: str) -> str:
        return re.sub("[aeiou]", "", text)

    def close(self) -> str:
        return "."


async def test_ones_own_needs_process_alone_and_is_called_with_the_whole_text() -> None:
    assert await run(ReplacePP({"a": "b"}) >> Shout() >> ReplacePP({"B": "c"}), ["x a", "x"]) == ("X cX", None)
    assert await run(Shout() >> Length(), ["ab", "c"]) == ("ABC", 3)
    assert await run(Rated() >> Shout(), ["ab"]) == ("AB!", 5)


async def test_characters_and_words_are_filtered() -> None:
    assert await run(FilterPP(filter_chars="*#"), ["# a *", "*b*"]) == (" a b", None)
    assert await run(FilterPP(filter_chars=["secret"]), ["a sec", "ret b"]) == ("a  b", None)


async def test_ones_own_with_open_streams() -> None:
    flow = Flow(Vowels())
    assert [flow.feed("abc"), flow.feed("e"), await flow.close()] == ["bc", "", "."]


async def test_they_can_be_called_on_a_text() -> None:
    assert ReplacePP({"a": "b"}).process("cat") == "cbt"
    assert TypeMapperPP(int).process("3") == 3
    assert await (JsonKeyExtractorPP("a") >> ReplacePP({"x": "y"})).process('{"a": "x"}') == "y"


async def test_a_postprocessor_that_gives_nothing_is_named() -> None:
    class Forgetful(BasePostprocess):
        def process(self, content: str, **kwargs: Any) -> None:
            return None

    assert "Forgetful gave nothing" in (await run(Forgetful(), ["x"]))[0]


async def test_a_long_answer_in_many_pieces_takes_linear_time() -> None:
    answer = "price 12 is <t>x</t> " * 5_000
    for postprocessor in (FilterPP(pattern=r"\d+"), FilterPP(pattern=r"<t>(?s:.*)</z>"), ReplacePP({"price": "p"})):
        text, _ = await run(postprocessor, [answer[at : at + 3] for at in range(0, len(answer), 3)])
        assert len(text) > 10_000


def test_a_pattern_that_would_take_for_ever_is_ended() -> None:
    with pytest.raises(AgentFailed, match="too long"):
        FilterPP(pattern=r"(a|aa)+$").process("a" * 60 + "b")


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (FilterPP, "pattern"),
        (lambda: FilterPP("a", pattern="b"), "pattern"),
        (lambda: FilterPP(pattern="("), "pattern"),
        (lambda: PatternMatcherPP("a", group=1), "group"),
        (lambda: ReplacePP({"": "x"}), "replace_map"),
        (JsonKeyExtractorPP, "target_key"),
        (lambda: JsonKeyExtractorPP("a", target_keys=["b"]), "target_key"),
        (lambda: JsonKeyExtractorPP(target_keys="ab"), "target_key"),
    ],
)
def test_a_wrong_argument_is_named(make: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.param == param
