"""The tables of a models file: what they may hold, and the catalog they make."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

from app.errors import InvalidInput
from app.llm.catalog import DEFAULT, Catalog, CatalogError, EndpointSpec, Model, Price, Secret
from app.llm.options import checked
from app.llm.toml_lines import Keys

MOST = 100
"""The most endpoints of a model, and the most names in a list."""

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_MODEL = ("endpoints", "fallback", "cascade", "llm", "context", "price", "defaults", "discover")
_LIMITS = ("max_concurrency", "rpm", "tpm")
_ENDPOINT = ("base_url", "model", "api_key_env", "weight", *_LIMITS, "batch", "batch_deadline", "first_token_seconds")
_PRICE = ("prompt", "completion", "cached", "batch")


def catalog(tables: Mapping[str, Any], variables: Mapping[str, str], default: Model | None = None) -> Catalog:
    """The catalog of parsed TOML, or `CatalogError`. Keys come from `variables`; `default` is used where the file has none."""
    models = table((), tables, ("models",)).get("models")
    if not isinstance(models, Mapping) or not models:
        raise CatalogError(("models",), "must hold at least one table, such as [models.default].")
    made = {alias: _model(("models", alias), alias, given, variables) for alias, given in models.items()}
    if default is not None:
        made.setdefault(DEFAULT, default)
    return Catalog(_with_shared_limits(made))


def _model(keys: Keys, alias: str, given: object, variables: Mapping[str, str]) -> Model:
    if not _ALIAS.fullmatch(alias):
        raise CatalogError(keys, "an alias is up to 64 letters, digits and . _ : - and begins with a letter or digit.")
    values = dict(table(keys, given, _MODEL))
    if "endpoints" in values:
        values["endpoints"] = _endpoints((*keys, "endpoints"), values["endpoints"], variables)
    for name in ("fallback", "cascade"):
        if name in values:
            values[name] = _names((*keys, name), values[name])
    if "price" in values:
        values["price"] = _price((*keys, "price"), values["price"])
    if "defaults" in values:
        values["defaults"] = _defaults((*keys, "defaults"), values["defaults"])
    with _at(keys):
        return Model(alias, **values)


def _endpoints(keys: Keys, given: object, variables: Mapping[str, str]) -> tuple[EndpointSpec, ...]:
    rows = array(keys, given, 'tables such as { base_url = "http://127.0.0.1:8000/v1", model = "name" }')
    made: list[EndpointSpec] = []
    for index, row in enumerate(rows):
        endpoint = _endpoint((*keys, index), row, variables)
        if any(endpoint.id == other.id for other in made):
            raise CatalogError((*keys, index), "is there already: let it have a weight instead.")
        made.append(endpoint)
    return tuple(made)


def _endpoint(keys: Keys, given: object, variables: Mapping[str, str]) -> EndpointSpec:
    values = dict(table(keys, given, _ENDPOINT, needed=("base_url", "model")))
    if "api_key_env" in values:
        values["api_key"] = key_of((*keys, "api_key_env"), values["api_key_env"], variables)
    with _at(keys):
        return EndpointSpec(**values)


def key_of(keys: Keys, name: object, variables: Mapping[str, str]) -> Secret:
    """What the variable of that name holds."""
    # No sentence repeats what was given: it may be the key itself, written in the wrong place.
    if not (isinstance(name, str) and _VARIABLE.fullmatch(name)):
        raise CatalogError(keys, "must be the name of a variable that holds the key, such as MY_KEY.")
    key = variables.get(name)
    if not key:
        raise CatalogError(keys, "names a variable that is missing or empty: set it in the environment or in .env.")
    if not (key.isascii() and key.isprintable()):
        raise CatalogError(keys, "names a variable whose value is not printable ASCII, as a key must be.")
    return Secret(key)


def _price(keys: Keys, given: object) -> Price:
    values = table(keys, given, _PRICE, needed=("prompt", "completion"))
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            what = "the share that is paid in a batch" if name == "batch" else "money per million tokens"
            raise CatalogError((*keys, name), f"must be a number: {what}.")
    with _at(keys):
        # A float's shortest text is the number as it was written.
        return Price(**{name: Decimal(str(value)) for name, value in values.items()})


def _defaults(keys: Keys, given: object) -> dict[str, Any]:
    values = table(keys, given)
    if "model" in values:
        raise CatalogError((*keys, "model"), "belongs to an endpoint.")
    with _at(keys):
        return checked(values)


def _names(keys: Keys, given: object) -> tuple[str, ...]:
    names = array(keys, given, 'aliases such as "big"', least=0)
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise CatalogError((*keys, index), "must be an alias: a text.")
        if name in names[:index]:
            raise CatalogError((*keys, index), "is named twice.")
    return tuple(names)


def array(keys: Keys, given: object, words: str, *, least: int = 1) -> list[Any]:
    """`given` as a list of at least so many, which `words` describe."""
    if not isinstance(given, list) or not least <= len(given) <= MOST:
        raise CatalogError(keys, f"must be an array of {least or 'up'} to {MOST} {words}.")
    return given


def table(keys: Keys, given: object, known: tuple[str, ...] = (), *, needed: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """`given` as a table with no other keys than `known`, if any are, and with all that are `needed`."""
    if not isinstance(given, Mapping):
        raise CatalogError(keys, "must be a table.")
    for name, value in given.items():
        if known and name not in known:
            raise CatalogError(
                (*keys, name), f"is not known here; known are {', '.join(known)}.{_hint(keys, name, value)}"
            )
    for name in needed:
        if name not in given:
            raise CatalogError(keys, f"needs {name}.")
    return given


def _hint(keys: Keys, name: str, value: object) -> str:
    """What somebody may have meant who wrote a key that is not known."""
    if len(keys) == 2 and isinstance(value, Mapping):
        return " A name with a dot in it is written in quotes."
    if "key" in name.lower():
        return " Keys are never in the file: api_key_env names the variable that holds one."
    return ""


@contextmanager
def _at(keys: Keys) -> Iterator[None]:
    """Say where a value is that cannot be."""
    try:
        yield
    except InvalidInput as error:
        place = (*keys, error.param) if error.param else keys
        raise CatalogError(place, error.message.removeprefix(f"{error.param} ")) from None


def _with_shared_limits(models: Mapping[str, Model]) -> dict[str, Model]:
    """Limits belong to an endpoint, whichever models it serves: the lowest that is given anywhere holds."""
    shared: dict[str, dict[str, Any]] = {}
    for endpoint in (endpoint for model in models.values() for endpoint in model.endpoints):
        limits = shared.setdefault(endpoint.id, {})
        for name in _LIMITS:
            if (limit := getattr(endpoint, name)) is not None:
                limits[name] = min(limit, limits.get(name, limit))
    return {
        alias: replace(model, endpoints=tuple(replace(endpoint, **shared[endpoint.id]) for endpoint in model.endpoints))
        for alias, model in models.items()
    }
