"""The OpenAPI document: what FastAPI knows of the routes, and here, once for all of them, what can go wrong, who may call, and examples.

Which errors an operation can answer with follows from its kind: whether strangers may call it, whether it names an object or changes
one, and whether an agent or a language model works for it. Their descriptions are those of the tree in `app.errors`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from fastapi.routing import APIRoute

from app import errors
from app.api.examples import example
from app.api.gate import PUBLIC
from app.api.openai_errors import PATHS, TYPES
from app.errors import AppError

Json = dict[str, Any]

DESCRIPTION = """\
A multi-user chat platform for agents. `model` in OpenAI's protocol is an agent, or an alias of a language model.

Authenticate with `Authorization: Bearer …`: an API key, or an access token of `POST /api/v1/auth/token`. Under `AUTH=open` programs of \
this machine need none.

Errors are `application/problem+json` (RFC 9457) with a stable `code`; under `/v1` and `/api/v1/llm` they have OpenAI's form, with the \
same `code`. Another user's object is not found, like one that does not exist. A 5xx that an operation does not list is a bug. Every \
answer has an `x-request-id`.
"""
TAGS = {
    "health": "Is the process alive, and ready to serve?",
    "accounts": "Logins, one's own password and one's own API keys.",
    "users": "Accounts, for administrators.",
    "groups": "Groups of users, and the agents that they may use, for administrators.",
    "budgets": "What users, groups, agents, sessions and keys may use, and what they used.",
    "cache": "Kept answers of language models.",
    "sessions": "Conversations of a user with an agent.",
    "messages": "What is said in sessions; a session's messages are a tree.",
    "runs": "Messages being answered: their state, their events, their end.",
    "agents": "What answers: agents of files, and users' presets of them. And the Model Coordination Protocol.",
    "mcp": "The Model Context Protocol: agents as tools.",
    "knowledge": "What agents keep for a user to look things up in.",
    "tasks": "What agents do in the background.",
    "schedules": "What agents are asked again and again, by the clock.",
    "webhooks": "Addresses that are told of what has ended.",
    "benches": "Rows put to agents, their answers scored, and agents compared.",
    "memories": "What agents remember, which their users may see and erase.",
    "verbs": "The same platform as verbs: sessions, messages and runs with one POST each.",
    "openai": "OpenAI's protocol, under `/v1` and `/api/v1/llm`.",
}
_PREFIXES = {"/api/v1/llm/": "llm_", "/api/v1/health": "api_", "/v1/": "openai_"}
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or an access token of a login"},
}
PROBLEM: Json = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one sentence"},
        "code": {"type": "string", "description": "stable, for programs"},
        "param": {"type": "string", "description": "the field at fault"},
        "run_id": {"type": "string", "format": "uuid", "description": "the run that failed"},
        "message_id": {"type": "string", "format": "uuid", "description": "the message that it did not answer"},
    },
}
OPENAI_ERROR: Json = {
    "type": "object",
    "description": "What went wrong, as OpenAI's clients know it.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field at fault"},
                "code": {"type": "string", "description": "stable, for programs"},
            },
        }
    },
}
_RETRY: Json = {"retry-after": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}}


def operation_id(route: APIRoute) -> str:
    """A route's id: a verb's own name, else the name of its function, marked where its paths are not the platform's own."""
    path = route.path_format
    if path.count("/") == 1:
        return path[1:]
    prefix = next((mark for start, mark in _PREFIXES.items() if path.startswith(start)), "")
    return prefix + route.name


def complete(document: Json) -> Json:
    """FastAPI's document, with everything that it does not know."""
    document["info"] |= {"summary": "A self-hosted chat platform for agents", "description": DESCRIPTION}
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    document["security"] = [{name: []} for name in SECURITY]
    components = document.setdefault("components", {})
    components["securitySchemes"] = SECURITY
    components["responses"] = dict(_responses())
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= {"Problem": PROBLEM, "OpenAIError": OPENAI_ERROR}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(path, method, operation, schemas)
    return document


def _complete(path: str, method: str, operation: Json, schemas: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    form = "OpenAI" if path.startswith(PATHS) else "Problem"
    for status in sorted({error.status for error in possible(path, method, operation)}):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{form}{status}"})
    if path in PUBLIC:
        operation["security"] = []
    contents = [(operation.get("requestBody", {}), True), *((response, False) for response in responses.values())]
    for place, is_request in contents:
        for media in place.get("content", {}).values():
            if "example" not in media and "schema" in media:
                media["example"] = example(media["schema"], schemas, is_request=is_request)


def possible(path: str, method: str, operation: Json) -> set[type[AppError]]:
    """The errors that an operation can answer with. A bug's 500 is not among them."""
    found: set[type[AppError]] = {errors.TooLarge}
    if path in PUBLIC and method == "get" and "/auth/" not in path:
        return found
    found |= {errors.InvalidInput, errors.NotAuthenticated, errors.RateLimited, errors.Unavailable}
    if path in PUBLIC:
        return found | _for_strangers(path)
    found.add(errors.NotAllowed)
    if "parameters" in operation or "requestBody" in operation:
        found.add(errors.NotFound)
    if method != "get":
        found.add(errors.Conflict)
    if _works(method, operation):
        found |= {errors.AgentFailed, errors.AgentTimeout, errors.LLMRejected, errors.LLMUnavailable}
    return found


def _for_strangers(path: str) -> set[type[AppError]]:
    """What else a stranger can be told: of an identity provider, a link, or the page's login."""
    if "/invite" in path:
        return {errors.NotFound, errors.Conflict}
    return {errors.NotFound} if "/oidc" in path else {errors.NotAllowed} if "/page" in path else set()


def _works(method: str, operation: Json) -> bool:
    """Whether an agent or a language model works for it."""
    streams = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    is_asked = "openai" in operation["tags"] and "application/json" in operation.get("requestBody", {}).get(
        "content", {}
    )
    return method == "post" and (streams or is_asked)


def _responses() -> Iterator[tuple[str, Json]]:
    """An answer for each status of the tree of errors, in both forms."""
    by_status: dict[int, list[type[AppError]]] = {}
    for _, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, AppError) and error is not AppError:
            by_status.setdefault(error.status, []).append(error)
    for status, found in sorted(by_status.items()):
        for form in ("Problem", "OpenAI"):
            yield f"{form}{status}", _response(form, status, sorted(found, key=lambda error: len(error.__mro__)))


def _response(form: str, status: int, found: list[type[AppError]]) -> Json:
    examples = {error.code: {"value": _error(form, error)} for error in found}
    sentences = [f"`{error.code}`: {(error.__doc__ or '').partition(chr(10))[0]}" for error in found]
    kind, schema = ("application/problem+json", "Problem") if form == "Problem" else ("application/json", "OpenAIError")
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": examples}}
    return {
        "description": "\n\n".join(sentences),
        "content": content,
        **({"headers": _RETRY} if status in (429, 503) else {}),
    }


def _error(form: str, error: type[AppError]) -> Json:
    message = (error.__doc__ or "").partition("\n")[0]
    if form == "Problem":
        return {
            "type": "about:blank",
            "title": error.code,
            "status": error.status,
            "detail": message,
            "code": error.code,
        }
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": error.code}}
