"""A program: each line of standard input asks whether an answer fits a pattern or a JSON Schema, a line of standard output tells.

It runs in a process of its own, which bounds itself and may be killed: what patterns and schemas of users do to those who follow
them, they do to nobody else. It imports nothing of the application. A question without an answer asks whether the rule is one.
"""

from __future__ import annotations

import json
import sys
import warnings
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 512_000_000
CPU_SECONDS = 2
"""What one question may take."""
PATTERN_SECONDS = 1.0
"""How long a pattern may look, before the process has to be killed for it."""
KEPT = 50
"""How many rules are kept as they were understood."""
REFERENCES = ("$ref", "$dynamicRef")


class Refused(Exception):
    """A rule that cannot be followed; its text says why."""


def json_in(answer: str) -> Any:
    """The answer as JSON, which models like to put into a fence. `ValueError` for what is none."""
    begin = answer.find("```")
    end = answer.find("```", begin + 3) if begin >= 0 else -1
    return json.loads(answer[begin + 3 : end].removeprefix("json") if end >= 0 else answer)


@lru_cache(KEPT)
def _pattern(rule: str) -> Any:
    import regex  # it can be told when to stop

    try:
        return regex.compile(rule)
    except regex.error as error:
        raise Refused(f"it is no pattern ({error})") from None


@lru_cache(KEPT)
def _validator(rule: str) -> Any:
    from jsonschema import Draft202012Validator, exceptions
    from referencing import Registry

    schema = json.loads(rule)
    _check_references(schema)
    try:
        Draft202012Validator.check_schema(schema)
    except exceptions.SchemaError as error:
        raise Refused(f"it is no schema ({error.message[:200]})") from None
    return Draft202012Validator(schema, registry=Registry())  # one of its own would fetch what a reference names


def _check_references(schema: Any) -> None:
    """Only what stands in the schema itself may be referred to."""
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            for name in REFERENCES:
                if isinstance(part.get(name), str) and not part[name].startswith("#"):
                    raise Refused(f"a {name} has to begin with #")
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


def fits(kind: str, rule: str, answer: str | None) -> bool:
    """Whether an answer fits a rule, a `pattern` or a `schema` as JSON."""
    if kind == "pattern":
        pattern = _pattern(rule)
        return answer is None or pattern.search(answer, timeout=PATTERN_SECONDS) is not None
    validator = _validator(rule)
    if answer is None:
        return True
    try:
        value = json_in(answer)
    except ValueError:
        return False
    return bool(validator.is_valid(value))


def told(question: bytes) -> dict[str, Any]:
    """What is said to a question."""
    try:
        return {"fits": fits(**json.loads(question))}
    except Refused as refused:
        return {"why": str(refused)}
    except TimeoutError:
        return {"why": "it takes too long"}
    except RecursionError:
        return {"why": "it is nested too deeply"}
    except Exception as error:
        return {"why": f"it cannot be followed ({type(error).__name__})"}


def main() -> None:
    """Answer questions until there are no more; one that takes too long is the end."""
    import resource  # not of every system, and this module is also imported

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    for question in sys.stdin.buffer:
        used, most = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1, most))
        sys.stdout.buffer.write(json.dumps(told(question)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
