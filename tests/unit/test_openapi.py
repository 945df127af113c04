"""The OpenAPI document is complete: whoever adds a route, a tag or an error finds here what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI

from app import errors
from app.api import openapi
from app.api.gate import PUBLIC
from app.api.openai_errors import PATHS
from app.errors import AppError
from app.main import create_app
from app.settings import Settings

Json = dict[str, Any]


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(_env_file=None, database_url="postgresql://localhost/none"))


@pytest.fixture(scope="module")
def document(app: FastAPI) -> Json:
    return app.openapi()


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_is_made_once(app: FastAPI, document: Json) -> None:
    assert app.openapi() is document


def test_operation_ids_are_words_and_unique(document: Json) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(id.isidentifier() for id in ids)
    assert {"SendMessage", "send_message", "openai_complete_chat", "llm_complete_chat", "readyz"} <= set(ids)


def test_every_tag_is_described_and_used(document: Json) -> None:
    used = {tag for _, _, operation in operations(document) for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"]}


def test_every_operation_says_what_it_does_and_who_may(document: Json) -> None:
    for path, method, operation in operations(document):
        assert operation["description"], (method, path)
        assert ("security" in operation) == (path in PUBLIC), (method, path)
    assert document["security"] == [{"bearer": []}]


def test_errors_have_the_form_of_their_path(document: Json) -> None:
    for path, method, operation in operations(document):
        form = "OpenAI" if path.startswith(PATHS) else "Problem"
        statuses = {error.status for error in openapi.possible(path, method, operation)}
        assert "422" not in operation["responses"]
        for status in statuses - {503}:  # /readyz has an own form of it
            found = operation["responses"][str(status)]
            assert found == {"$ref": f"#/components/responses/{form}{status}"}, (method, path)


def test_the_tree_of_errors_is_in_the_document(document: Json) -> None:
    tree = {name: error for name, error in vars(errors).items() if isinstance(error, type)}
    for error in tree.values():
        if issubclass(error, AppError) and error is not AppError:
            for form in ("Problem", "OpenAI"):
                assert error.code in document["components"]["responses"][f"{form}{error.status}"]["description"]


def test_references_lead_somewhere(document: Json) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(target := node.get("$ref"), str):
                _, _, kind, name = target.split("/")
                assert name in document["components"][kind], target
            for part in node.values():
                walk(part)
        elif isinstance(node, list):
            for part in node:
                walk(part)

    walk(document)


def shown(document: Json) -> Iterator[tuple[str, Json, Any]]:
    """Every body's schema and example."""
    for path, method, operation in operations(document):
        for place in (operation.get("requestBody", {}), *operation["responses"].values()):
            for media in place.get("content", {}).values():
                if "schema" in media:
                    yield f"{method} {path}", media["schema"], media["example"]
    for name, response in document["components"]["responses"].items():
        for media in response["content"].values():
            for example in media["examples"].values():
                yield name, media["schema"], example["value"]


def test_every_body_has_an_example_that_fits_its_schema(document: Json) -> None:
    for place, schema, example in shown(document):
        validator = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
        assert validator.is_valid(example), (place, [str(error) for error in validator.iter_errors(example)], example)
