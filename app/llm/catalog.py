"""The catalog of language models: what stands behind an alias, and what its tokens cost. The values check themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal, localcontext
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Any

from app.domain import Usage
from app.errors import InvalidInput, LLMUnavailable, NotFound, SettingsError
from app.llm.options import checked
from app.llm.toml_lines import Keys, dotted
from app.llm.upstream import OPENAI, TOTAL_SECONDS, checked_url

DEFAULT = "default"
"""The alias that a call gets which names none."""
MAX_NAME = 200
"""The longest name of a model in a request, in characters; `options.checked` holds to it too."""
MAX_PRICE = Decimal(1_000_000)
"""Nobody asks for more than one unit of money a token."""
MOST_SHOWN = 20
"""How many aliases an error lists."""
MOST_DISCOVERED = 1000
"""How many models of one server become aliases."""

_COST = Decimal("1e-9")
"""The ledger keeps money as NUMERIC(18, 9), and rounds as PostgreSQL does: half away from zero."""
FREE = Decimal(0)
_LLM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
WINDOW_SECONDS = 86_400
"""How long a batch may take: OpenAI's protocol has one window, of 24 hours."""
_RANGES = {
    "weight": 1000,
    "max_concurrency": 10_000,
    "rpm": 10_000_000,
    "tpm": 10_000_000_000,
    "batch_deadline": WINDOW_SECONDS,
    "first_token_seconds": TOTAL_SECONDS,
}


class CatalogError(SettingsError):
    """A catalog that cannot be: where (`keys`), and why (`text`, one sentence whose subject is that place)."""

    def __init__(self, keys: Keys, text: str) -> None:
        super().__init__(f"{dotted(keys)}: {text}")
        self.keys, self.text = keys, text


class Secret:
    """A text that is given to who asks for it by `reveal`, and is shown nowhere else."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True, init=False)
class Price:
    """Money per million tokens, 0 to 1,000,000 each. `cached` is for prompt tokens that the server had in its own cache.

    `batch` is the share of all this, 0 to 1, that is paid for what the server answers in a batch.
    """

    prompt: Decimal
    completion: Decimal
    cached: Decimal
    batch: Decimal

    def __init__(
        self,
        prompt: Decimal = Decimal(0),
        completion: Decimal = Decimal(0),
        cached: Decimal | None = None,
        batch: Decimal = Decimal(1),
    ) -> None:
        """Without `cached` such tokens cost what others do."""
        if not (batch.is_finite() and 0 <= batch <= 1):
            raise InvalidInput("batch must be a number from 0 to 1: the share that is paid in a batch.", param="batch")
        object.__setattr__(self, "batch", batch)
        cached = prompt if cached is None else cached
        for name, value in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            if not (value.is_finite() and 0 <= value <= MAX_PRICE):
                raise InvalidInput(f"{name} must be a number from 0 to {MAX_PRICE}.", param=name)
            object.__setattr__(self, name, value)

    @property
    def is_free(self) -> bool:
        """Whether nothing costs anything."""
        return not (self.prompt or self.completion or self.cached)

    def cost(self, usage: Usage, *, batch: bool = False) -> Decimal:
        """What `usage` costs, in a batch or not, exact to nine decimal places. Reasoning tokens are part of the completion's."""
        if self.is_free:
            return FREE
        cached = min(usage.cached, usage.prompt)
        with localcontext(prec=60):
            millionths = (
                (usage.prompt - cached) * self.prompt + cached * self.cached + usage.completion * self.completion
            )
            if batch:
                millionths *= self.batch
            return millionths.scaleb(-6).quantize(_COST, ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One server and the model it is asked for; `rpm` and `tpm` are requests and tokens a minute. A bad value is `InvalidInput`."""

    base_url: str
    model: str
    api_key: Secret | None = None
    api_key_env: str | None = None
    """The name of the variable that the key came from."""
    weight: int = 1
    max_concurrency: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    batch: bool = False
    """Whether the server has OpenAI's Files and Batches: then calls of mode batch go there."""
    batch_deadline: int | None = None
    """Seconds after which what a batch has not answered is asked at once; `WINDOW_SECONDS` by default."""
    first_token_seconds: int | None = None
    """How long the server may take to begin its answer; that of `Deadlines` by default."""
    id: str = ""
    """The same in every process: made of `base_url`, `model` and the name of the key's variable, never of the key."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_url(self.base_url))
        checked({"model": self.model})
        for name, most in _RANGES.items():
            value = getattr(self, name)
            if not (_is_count(value, most) or (value is None and name != "weight")):
                raise InvalidInput(f"{name} must be an integer from 1 to {most}.", param=name)
        if not isinstance(self.batch, bool):
            raise InvalidInput("batch must be true or false.", param="batch")
        if self.batch_deadline is not None and not self.batch:
            raise InvalidInput("batch_deadline needs batch = true beside it.", param="batch_deadline")
        if not self.id:
            said = "\0".join((self.base_url, self.model, self.api_key_env or ""))
            object.__setattr__(self, "id", sha256(said.encode()).hexdigest()[:16])


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _checked_url(url: object) -> str:
    words = (
        "an address such as https://api.openai.com/v1, with http:// or https:// before it and nothing after the path"
    )
    if not (isinstance(url, str) and 0 < len(url) <= 2000 and url.isprintable()) or any(c in url for c in " ?#"):
        raise InvalidInput(f"base_url must be {words}.", param="base_url")
    return checked_url(url)


@dataclass(frozen=True, slots=True)
class Model:
    """What an alias stands for: endpoints that answer alike, a cascade of other aliases, or an LLM of one's own.

    `fallback` names the aliases that are asked, in order, when this one cannot answer. `context` is in tokens. `defaults`
    are options of calls that give none. Without a price calls cost nothing. A bad value is `InvalidInput`.
    """

    alias: str
    endpoints: tuple[EndpointSpec, ...] = ()
    fallback: tuple[str, ...] = ()
    cascade: tuple[str, ...] = ()
    llm: str | None = None
    """`package.module:Class`."""
    context: int | None = None
    price: Price = field(default_factory=Price)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    discover: bool = False
    """Whether the other models of the server are to be aliases too: see `discovered`."""
    is_passed_through: bool = False
    """Whether it is no alias, but whatever name was asked for: see `Catalog`."""

    def __post_init__(self) -> None:
        if [bool(self.endpoints), bool(self.cascade), self.llm is not None].count(True) != 1:
            raise InvalidInput("needs exactly one of endpoints, cascade and llm.")
        if self.llm is not None and not (isinstance(self.llm, str) and _LLM.fullmatch(self.llm)):
            raise InvalidInput('llm must name a class, such as "my_package:MyLLM".', param="llm")
        if self.context is not None and not _is_count(self.context, 100_000_000):
            raise InvalidInput("context must be an integer from 1 to 100000000.", param="context")
        if not isinstance(self.discover, bool):
            raise InvalidInput("discover must be true or false.", param="discover")
        if self.discover and len(self.endpoints) != 1:
            raise InvalidInput("discover needs a model with exactly one endpoint.", param="discover")
        if self.cascade:
            self._check_cascade()

    @property
    def name(self) -> str:
        """What its first server calls it; an LLM of one's own is called by the alias."""
        return self.endpoints[0].model if self.endpoints else self.alias

    def _check_cascade(self) -> None:
        if len(self.cascade) < 2:
            raise InvalidInput("cascade must name at least two models, the cheapest first.", param="cascade")
        own = {"fallback": self.fallback, "context": self.context is not None, "price": self.price != Price()}
        for name, given in own.items():
            if given:
                raise InvalidInput(f"{name} belongs to the models of the cascade, not to the cascade.", param=name)


def discovered(model: Model, names: Iterable[str]) -> list[Model]:
    """The aliases `alias/name` for what the server of `model`, whose `discover` is true, lists as its models.

    They are like `model` in all but the name: key, limits, price, defaults and fallback. The limits hold for each of them.
    Names that fit in no request are left out, and so are those after the first 1,000 in alphabetical order.
    """
    longest = MAX_NAME - len(model.alias) - 1
    good = sorted({name for name in names if 0 < len(name) <= longest and name.isprintable()})
    (endpoint,) = model.endpoints
    return [
        replace(
            model,
            alias=f"{model.alias}/{name}",
            endpoints=(replace(endpoint, model=name, id=""),),
            discover=False,
        )
        for name in good[:MOST_DISCOVERED]
    ]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All models by their aliases. Every name in a `fallback` or `cascade` is an alias, and none leads back to itself.

    `passes_through` is for `OPENAI_*` without a models file: a name that is no alias is then asked of that server as it
    is, so that a session may name any of the server's models. With a models file only its aliases are known.
    """

    models: Mapping[str, Model] = field(default_factory=dict)
    passes_through: bool = False

    def __post_init__(self) -> None:
        for alias, kind, index, name in _references(self.models):
            if name not in self.models:
                raise CatalogError(("models", alias, kind, index), f"there is no model named {dotted((name,))}.")
        try:
            TopologicalSorter({a: [*m.fallback, *m.cascade] for a, m in self.models.items()}).prepare()
        except CycleError as error:
            raise _cycle(self.models, error.args[1]) from None

    @classmethod
    def from_openai(cls, base_url: str | None, api_key: str | None, model: str) -> Catalog:
        """What `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL` alone define; nothing without the first two."""
        if not (base_url or api_key):
            return cls()
        key, env = (Secret(api_key), "OPENAI_API_KEY") if api_key else (None, None)
        endpoint = EndpointSpec(base_url or OPENAI, model, key, env)
        return cls({DEFAULT: Model(DEFAULT, (endpoint,))}, passes_through=True)

    @property
    def aliases(self) -> tuple[str, ...]:
        """All aliases, in the order of the file."""
        return tuple(self.models)

    def get(self, alias: str = DEFAULT) -> Model:
        """What `alias` stands for; `NotFound`, whose sentence lists what there is, or `LLMUnavailable` without any model.

        A name passed through shares the endpoint id of `default`: it is one server, however many names users try.
        """
        if model := self.models.get(alias):
            return model
        if not self.models:
            raise LLMUnavailable(
                "No language model is set up: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own, "
                "or write models.toml."
            )
        if self.passes_through:
            (endpoint,) = self.models[DEFAULT].endpoints
            return Model(alias, (replace(endpoint, model=alias),), is_passed_through=True)
        raise NotFound(f"model{' as default' if alias == DEFAULT else ''}; known are {self._listed()}", param="model")

    def _listed(self) -> str:
        more = len(self.models) - MOST_SHOWN
        names = ", ".join(self.aliases[:MOST_SHOWN])
        return f"{names} and {more} more" if more > 0 else names


def _references(models: Mapping[str, Model]) -> Iterator[tuple[str, str, int, str]]:
    """Every mention of a model by another: (alias, "fallback" or "cascade", position, the alias that is named)."""
    for alias, model in models.items():
        for kind, names in (("fallback", model.fallback), ("cascade", model.cascade)):
            for index, name in enumerate(names):
                yield alias, kind, index, name


def _cycle(models: Mapping[str, Model], circle: list[str]) -> CatalogError:
    """The error at the first mention in the file that is part of `circle`, in which each is named by the next."""
    names = circle[:0:-1]  # each names the next, and the last the first
    order = {alias: index for index, alias in enumerate(models)}
    start = min(names, key=order.__getitem__)
    at = names.index(start)
    names = [*names[at:], *names[:at], start]
    keys = next(
        ("models", a, kind, index) for a, kind, index, name in _references(models) if (a, name) == (start, names[1])
    )
    shown = names if len(names) <= MOST_SHOWN else [*names[: MOST_SHOWN - 1], "…", start]
    return CatalogError(keys, f"leads back to where it began: {' → '.join(shown)}.")
