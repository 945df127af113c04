"""Post-processors that look for something in the text: fixed words, and regular expressions.

Each says what is certain and holds back the rest: of words as much as the longest could still need; of a pattern from
the first place on where more text could change what matches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import regex
from regex import Match, Pattern

from app.agent.postprocess import BasePostprocess, Feed
from app.errors import AgentFailed, InvalidInput

CONTEXT = 1000
"""How many characters a pattern may look back at before its match."""
SECONDS = 0.5
"""How long matching may take at once, and in all beyond `SECONDS_PER_CHARACTER`."""
SECONDS_PER_CHARACTER = 1e-4

_END = "\uffff\ufffe\uffff"
"""Noncharacters, which Unicode keeps out of text: a pattern that asks for them comes to the end of what there is."""
_ODD = re.compile(r"\\[KG]|\(\*|(?<!\\[pPNuUx])\{[^}]*[a-z<][^}]*\}")
"""What only the whole text decides: where matching began, verbs of backtracking, and approximate matches.

So does the end of a word or line that must not be there, inside `(?!…)`.
"""
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)


class ReplacePP(BasePostprocess):
    """Replaces words by others, all in one pass: where several begin at one place the longest, and never what it wrote itself."""

    def __init__(self, replace_map: Mapping[str, str]) -> None:
        if not all(isinstance(text, str) for pair in replace_map.items() for text in pair) or "" in replace_map:
            raise InvalidInput("replace_map must map texts, none of them empty, to texts.", param="replace_map")
        self._map = dict(replace_map)

    def open(self) -> Feed:
        """A feed that holds back what may be the beginning of a word."""
        return _Words(self._map)


class FilterPP(BasePostprocess):
    """Removes characters, or what matches a regular expression."""

    def __init__(
        self, filter_chars: Iterable[str] | None = None, *, pattern: str | re.Pattern[str] | None = None
    ) -> None:
        if (pattern is None) == (filter_chars is None):
            raise InvalidInput("FilterPP takes either a pattern or filter_chars.", param="pattern")
        self._words = dict.fromkeys(filter(None, filter_chars or ()), "")
        self._pattern = _Compiled(pattern) if pattern is not None else None

    def open(self) -> Feed:
        """A feed that says what is left."""
        if self._pattern is None:
            return _Words(self._words)
        return _Matches(self._pattern, between=str, matched=lambda _: "")


class PatternMatcherPP(BasePostprocess):
    """Keeps what matches a regular expression, or one group of it; the matches are joined by `separator`.

    The value is the list of matches.
    """

    def __init__(self, pattern: str | re.Pattern[str], *, group: int | str = 0, separator: str = "") -> None:
        self._pattern = _Compiled(pattern)
        self._group, self._separator = group, separator
        sure = self._pattern.sure
        if group not in (sure.groupindex if isinstance(group, str) else range(sure.groups + 1)):
            raise InvalidInput("The pattern has no such group.", param="group")

    def open(self) -> Feed:
        """A feed that says the matches."""
        found: list[str] = []

        def matched(match: Match[str]) -> str:
            before = self._separator if found else ""
            found.append(match.group(self._group) or "")
            return before + found[-1]

        feed = _Matches(self._pattern, between=lambda _: "", matched=matched)
        feed.value = found
        return feed


class _Words:
    """Replaces words. A place is certain once the longest word that could begin there fits in what has come."""

    def __init__(self, words: Mapping[str, str]) -> None:
        self._words = words
        self._lengths: dict[str, list[int]] = {}
        for word in sorted(words, key=len, reverse=True):
            lengths = self._lengths.setdefault(word[0], [])
            if len(word) not in lengths:
                lengths.append(len(word))
        self._longest = max(map(len, words), default=1)
        self._first = re.compile("[" + "".join(map(re.escape, self._lengths)) + "]") if words else None
        self._held = ""

    def feed(self, text: str) -> str:
        self._held += text
        return self._say(len(self._held) - self._longest + 1)

    def close(self) -> str:
        return self._say(len(self._held))

    def _say(self, certain: int) -> str:
        """Everything before a place that is certain up to there."""
        text, at, said = self._held, 0, []
        while at < certain:
            found = self._first.search(text, at, certain) if self._first else None
            start = found.start() if found else certain
            said.append(text[at:start])
            at = start
            if found:
                word = next(filter(self._words.__contains__, self._at(text, at)), text[at])
                said.append(self._words.get(word, word))
                at += len(word)
        self._held = text[at:]
        return "".join(said)

    def _at(self, text: str, at: int) -> Iterable[str]:
        return (text[at : at + length] for length in self._lengths[text[at]])


class _Compiled:
    """A regular expression twice: to match, and to find where it could still match if the text went on."""

    def __init__(self, pattern: str | re.Pattern[str]) -> None:
        flags = 0 if isinstance(pattern, str) else pattern.flags & (re.I | re.M | re.S | re.X | re.A)
        text = pattern if isinstance(pattern, str) else pattern.pattern
        try:
            self.sure: Pattern[str] = regex.compile(text, flags)
        except (regex.error, ValueError) as error:
            raise InvalidInput(f"The pattern is no regular expression: {error}.", param="pattern") from None
        if self.sure.flags & regex.REVERSE:
            raise InvalidInput(
                "The pattern searches backwards, (?r), but an answer is read as it comes.", param="pattern"
            )
        self.open: Pattern[str] | None = None
        """None where that cannot be told: then the whole text is waited for."""
        with suppress(regex.error):
            self.open = regex.compile(f"(?:{_TOKEN.sub(_or_end, text)}){_END}", flags)
        changed = self.open is not None and any(_or_end(token) != token[0] for token in _TOKEN.finditer(text))
        if _ODD.search(text) or (changed and re.search(r"\(\?<?!", text)):
            self.open = None


def _or_end(token: re.Match[str]) -> str:
    """What asks whether the text ends here, or what comes next, as something that more text may answer either way.

    That comes first: an answer inside of `(?=…)` is not asked for again.
    """
    text = token[0]
    if text in (r"\b", r"\B", r"\Z", r"\z", r"\m", r"\M"):
        return f"(?:(?={_END})|{text})"
    if text == "$":
        return rf"(?:(?={_END})|(?=\n{_END})|$)"
    return text


class _Matches:
    """Finds matches from left to right, as they would be found in the whole text; empty ones do not count.

    What is held back is looked at again when it has doubled, so that all looking together is linear.
    """

    def __init__(
        self, pattern: _Compiled, *, between: Callable[[str], str], matched: Callable[[Match[str]], str]
    ) -> None:
        self.value: Any = None
        self._pattern, self._between, self._matched = pattern, between, matched
        self._new: list[str] = []
        self._count = 0
        self._wait = 0
        self._text = ""
        self._at = 0
        self._seconds = SECONDS

    def feed(self, text: str) -> str:
        self._new.append(text)
        self._count += len(text)
        self._seconds += SECONDS_PER_CHARACTER * len(text)
        if self._pattern.open is None or self._count < self._wait:
            return ""
        return self._say(ended=False)

    def close(self) -> str:
        return self._say(ended=True)

    def _say(self, *, ended: bool) -> str:
        kept = max(self._at - CONTEXT, 0)
        self._text = "".join((self._text[kept:], *self._new))
        self._at -= kept
        self._new = []
        said: list[str] = []
        certain = -1
        while self._at > certain:  # a match may have gone beyond what was certain from its beginning
            certain = len(self._text) if ended else self._certain()
            self._advance(certain, said)
            if self._at >= len(self._text):
                break
        self._wait = len(self._text) - self._at
        self._count = 0
        return "".join(said)

    def _advance(self, certain: int, said: list[str]) -> None:
        """Say everything before a place, and the match that goes over it."""
        text, at = self._text, self._at
        begun = at
        while at < certain and (match := self._search(self._pattern.sure, at)) and match.start() < certain:
            at = match.end()
            if match.start() == at:
                at += 1
                continue
            said += self._between(text[begun : match.start()]), self._matched(match)
            begun = at
        self._at = max(at, certain)
        said.append(self._between(text[begun : self._at]) if begun < self._at else "")

    def _certain(self) -> int:
        open_ = self._pattern.open
        match = self._search(open_, self._at, partial=True) if open_ else None
        return match.start() if match else len(self._text)

    def _search(self, pattern: Pattern[str], at: int, *, partial: bool = False) -> Match[str] | None:
        start = time.monotonic()
        try:
            return pattern.search(self._text, at, partial=partial, timeout=max(min(self._seconds, SECONDS), 1e-3))
        except TimeoutError:
            raise AgentFailed("A pattern takes too long on this answer.") from None
        finally:
            self._seconds -= time.monotonic() - start
