"""`chattable models`: what the models file says, and whether the servers behind it answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import AsJson

if TYPE_CHECKING:
    from app.llm.catalog import Catalog, EndpointSpec, Model

models = typer.Typer(help="The language models of MODELS_FILE and OPENAI_*.", no_args_is_help=True)

QUESTION = "Answer with the one word ok."


@dataclass(frozen=True, slots=True)
class Tested:
    """How one endpoint, or an LLM of one's own, answered: in how many seconds, and what is wrong if anything is."""

    alias: str
    base_url: str | None
    model: str
    seconds: float
    problem: str | None


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show every alias with its endpoints, price per million tokens and context; keys by the names of their variables."""
    known = _catalog().models.values()
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": [_row(model) for model in known]}, indent=2, default=str))
        return
    for model in known:
        typer.echo("\n".join(_lines(model)))


@models.command("test")
def ask_models(
    alias: Annotated[str | None, typer.Argument(help="One alias; all of them by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask each endpoint for a short answer, or an embedding behind the alias `embedding`; status 1 if any gives none.

    It may cost a little, and takes a minute at most.
    """
    import asyncio

    catalog = _catalog()
    found = list(_asked(catalog, catalog.aliases if alias is None else [alias]))
    tested = asyncio.run(_ask_all(found))
    if as_json:
        rows = [{**asdict(row), "ok": row.problem is None} for row in tested]
        typer.echo(json.dumps({"object": "list", "data": rows}, indent=2))
    else:
        for row in tested:
            said = row.problem or f"ok, {row.seconds:.1f} s"
            typer.echo("  ".join(filter(None, [row.alias, row.base_url, row.model, said])))
    raise typer.Exit(int(any(row.problem for row in tested)))


def _catalog() -> Catalog:
    from app.errors import SettingsError
    from app.llm.catalog import Catalog
    from app.llm.models_file import ModelsFile
    from app.settings import load, variables

    settings = load()
    key = settings.openai_api_key
    openai = Catalog.from_openai(
        settings.openai_base_url, key.get_secret_value() if key else None, settings.openai_model
    )
    catalog = ModelsFile(settings.models_file, variables, openai).catalog
    if not catalog.models:
        raise SettingsError(f"No language model is set up: write {settings.models_file}, or set OPENAI_API_KEY.")
    return catalog


def _lines(model: Model) -> Iterator[str]:
    price = model.price
    facts = [
        f"cascade {' → '.join(model.cascade)}" if model.cascade else "",
        model.llm or "",
        f"context {model.context}" if model.context else "",
        ""
        if price.is_free
        else f"price per million {price.prompt:f} prompt, {price.completion:f} completion, {price.cached:f} cached",
        f"fallback {', '.join(model.fallback)}" if model.fallback else "",
        f"defaults {json.dumps(model.defaults)}" if model.defaults else "",
        f"and {model.alias}/NAME for all models of the server" if model.discover else "",
    ]
    yield "  ".join([model.alias, "; ".join(fact for fact in facts if fact)]).rstrip()
    for endpoint in model.endpoints:
        limits = [f"{name} {value}" for name, value in _limits(endpoint).items() if value is not None]
        key = f"key in {endpoint.api_key_env}" if endpoint.api_key_env else "no key"
        yield f"  {endpoint.base_url}  {endpoint.model}  {', '.join([key, *limits])}"


def _limits(endpoint: EndpointSpec) -> dict[str, int | None]:
    return {name: getattr(endpoint, name) for name in ("weight", "max_concurrency", "rpm", "tpm")}


def _row(model: Model) -> dict[str, Any]:
    price = model.price
    return {
        "alias": model.alias,
        "endpoints": [
            {
                "base_url": endpoint.base_url,
                "model": endpoint.model,
                "api_key_env": endpoint.api_key_env,
                **_limits(endpoint),
            }
            for endpoint in model.endpoints
        ],
        "cascade": model.cascade,
        "llm": model.llm,
        "fallback": model.fallback,
        "context": model.context,
        "price": {name: f"{getattr(price, name):f}" for name in ("prompt", "completion", "cached")},
        "defaults": model.defaults,
        "discover": model.discover,
    }


def _asked(catalog: Catalog, aliases: Sequence[str]) -> Iterator[tuple[Model, EndpointSpec | None]]:
    """Every endpoint behind `aliases` once for each alias it has, none for an LLM of one's own; a cascade's are its models'."""
    from app.errors import NotFound, SettingsError

    seen, left = set(), list(reversed(aliases))
    while left:
        if (alias := left.pop()) in seen:
            continue
        seen.add(alias)
        try:
            model = catalog.get(alias)
        except NotFound as error:
            raise SettingsError(error.message) from None
        left += reversed(model.cascade)
        for endpoint in model.endpoints or ((None,) if model.llm else ()):
            yield model, endpoint


async def _ask_all(found: Sequence[tuple[Model, EndpointSpec | None]]) -> list[Tested]:
    import asyncio

    return list(await asyncio.gather(*(_ask(model, endpoint) for model, endpoint in found)))


async def _ask(model: Model, endpoint: EndpointSpec | None) -> Tested:
    import time

    begin = time.monotonic()
    problem = await (_problem(model, endpoint) if endpoint else _own_problem(model))
    url, name = (endpoint.base_url, endpoint.model) if endpoint else (None, model.llm or "")
    return Tested(model.alias, url, name, round(time.monotonic() - begin, 3), problem)


async def _own_problem(model: Model) -> str | None:
    """What is wrong with an LLM of one's own, which is made and asked in this process."""
    import asyncio
    from contextlib import aclosing

    from app.errors import AppError, SettingsError
    from app.llm.catalog import Catalog
    from app.llm.embed import EMBEDDING
    from app.llm.endpoints import OwnLLMs

    own = OwnLLMs()
    try:
        await asyncio.to_thread(own.load, Catalog({model.alias: replace(model, fallback=())}))
        llm = own.get(model.llm or "")
        async with asyncio.timeout(60):
            if model.alias == EMBEDDING:
                await llm.embed([QUESTION])
                return None
            async with aclosing(llm.items(_question(), dict(model.defaults))) as answer:
                async for _ in answer:
                    pass
    except SettingsError as error:
        return str(error)
    except AppError as error:
        return error.message
    except Exception as error:  # whatever the operator's own code does
        return f"It failed ({type(error).__name__})."
    return None


def _question() -> list[dict[str, Any]]:
    return [{"role": "user", "content": QUESTION}]


async def _problem(model: Model, endpoint: EndpointSpec) -> str | None:
    """What is wrong with the answer to a call as the platform makes it, with the model's defaults."""
    from contextlib import aclosing

    from app.errors import AppError
    from app.llm.embed import EMBEDDING
    from app.llm.llm import Finish
    from app.llm.refusals import UpstreamAuth
    from app.llm.upstream import Deadlines, Upstream

    key = endpoint.api_key.reveal() if endpoint.api_key else None
    body = {**model.defaults, "model": endpoint.model, "messages": _question()}
    reason, first = "", endpoint.first_token_seconds or 30
    try:
        upstream = Upstream(endpoint.base_url, key, deadlines=Deadlines(10, first, 30, first + 30))
        try:
            if model.alias == EMBEDDING:
                await upstream.embed(endpoint.model, [QUESTION])
                return None
            async with aclosing(upstream.stream(body)) as answer:
                async for items in answer:
                    reason = items[-1].reason if isinstance(items[-1], Finish) else reason
        finally:
            await upstream.close()
    except UpstreamAuth:
        where = (
            f"the key in {endpoint.api_key_env}"
            if endpoint.api_key_env
            else "calls without a key: set api_key_env, or OPENAI_API_KEY"
        )
        return f"The language model's server does not accept {where}."
    except AppError as error:
        return error.message
    return "The answer broke off before its end." if reason == "cut" else None
