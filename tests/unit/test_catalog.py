"""The catalog of models: what its values promise, and what they refuse."""

import copy
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import Usage
from app.errors import InvalidInput, LLMUnavailable, NotFound
from app.llm.catalog import Catalog, CatalogError, EndpointSpec, Model, Price, Secret, discovered

URL = "http://127.0.0.1:9001/v1"
SMALL = EndpointSpec(URL, "qwen3-4b", Secret("sk-canary"), "KEY_A", weight=2, rpm=60)


def model(alias: str, *fallback: str, cascade: tuple[str, ...] = ()) -> Model:
    return Model(alias, () if cascade else (SMALL,), fallback, cascade)


def catalog(*models: Model) -> Catalog:
    return Catalog({model.alias: model for model in models})


# Prices


def test_a_cost_is_exact() -> None:
    price = Price(Decimal("0.10"), Decimal("0.40"), Decimal("0.05"))
    assert price.cost(Usage(prompt=1000, completion=10, cached=400)) == Decimal("0.000084000")
    assert price.cost(Usage(1, 0)) == Decimal("1e-7")
    assert str(price.cost(Usage())) == "0E-9"


def test_without_a_price_of_their_own_cached_tokens_cost_what_others_do() -> None:
    price = Price(Decimal(3), Decimal(4))
    assert price.cached == 3
    assert price.cost(Usage(1_000_000, 0, cached=500_000)) == 3
    assert Price().is_free
    assert Price().cost(Usage(5, 5, 5)) == 0


def test_reasoning_is_part_of_the_completion() -> None:
    assert Price(completion=Decimal(2)).cost(Usage(0, 1_000_000, reasoning=900_000)) == 2


def test_more_cached_tokens_than_there_are_make_nothing_cheaper_than_all_cached() -> None:
    assert Price(Decimal(10), cached=Decimal(1)).cost(Usage(1_000_000, 0, cached=10**9)) == 1


def test_half_of_the_last_place_is_rounded_up_as_the_ledger_does() -> None:
    assert Price(Decimal("0.0005")).cost(Usage(1)) == Decimal("0.000000001")
    assert Price(Decimal("0.0004")).cost(Usage(1)) == 0


@given(st.decimals(0, 1_000_000, places=9), st.integers(0, 10**12), st.integers(0, 10**12))
def test_no_cost_is_negative_or_off_by_more_than_half_a_place(price: Decimal, prompt: int, completion: int) -> None:
    cost = Price(price, price, Decimal(0)).cost(Usage(prompt, completion))
    numerator = int(price.scaleb(9)) * (prompt + completion)
    assert cost >= 0
    assert abs(int(cost.scaleb(9)) * 10**6 - numerator) * 2 <= 10**6


def test_a_batch_costs_its_share_and_nothing_else_does() -> None:
    price, usage = Price(Decimal(3), Decimal(4), batch=Decimal("0.5")), Usage(1_000_000, 1_000_000)
    assert (price.cost(usage), price.cost(usage, batch=True)) == (7, Decimal("3.5"))
    assert Price(Decimal(3)).cost(usage, batch=True) == 3
    for wrong in ("-0.1", "1.01", "NaN"):
        with pytest.raises(
            InvalidInput, match=r"^batch must be a number from 0 to 1: the share that is paid in a batch\.$"
        ):
            Price(batch=Decimal(wrong))


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "1000000.01", "-0.000000001"])
@pytest.mark.parametrize("name", ["prompt", "completion", "cached"])
def test_a_price_is_a_number_in_its_range(name: str, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} must be a number from 0 to 1000000.$"):
        Price(**{name: Decimal(wrong)})


# Endpoints


def test_a_key_is_shown_nowhere() -> None:
    shown = [repr(SMALL), str(SMALL), f"{SMALL}", repr(model("a")), repr(catalog(model("a"))), repr(SMALL.api_key)]
    assert not any("canary" in text for text in shown)
    assert SMALL.api_key is not None
    assert SMALL.api_key.reveal() == "sk-canary"


def test_a_changed_key_is_a_change_and_a_copied_one_is_none() -> None:
    assert replace(SMALL, api_key=Secret("other")) != SMALL
    assert copy.deepcopy(SMALL) == SMALL
    assert hash(SMALL) == hash(replace(SMALL))


def test_the_id_is_made_of_address_model_and_the_name_of_the_key_alone() -> None:
    assert SMALL.id == sha256(f"{URL}\0qwen3-4b\0KEY_A".encode()).hexdigest()[:16]
    assert SMALL.id == EndpointSpec(f"{URL}/", "qwen3-4b", Secret("other"), "KEY_A", tpm=9).id
    others = [EndpointSpec(URL, "other"), EndpointSpec(URL, "qwen3-4b"), EndpointSpec("http://b/v1", "qwen3-4b")]
    assert len({SMALL.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x",
        "x",
        "http://",
        "http://u:p@h/v1",
        "http://h:x/v1",
        "http://h/v1?key=k",
        "http://h/#a",
        "http://h/ v",
        "http://h/\n",
    ],
)
def test_a_base_url_is_an_address_and_nothing_more(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^base_url must be an address such as") as caught:
        EndpointSpec(url, "m")
    assert caught.value.param == "base_url"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("weight", "max_concurrency", "rpm", "tpm", "batch_deadline", "first_token_seconds")
            for value in (0, -1, 10**11, True, 1.5)
        ),
        ("weight", None),
        ("model", ""),
        ("model", "x" * 201),
        ("model", "a\nb"),
    ],
)
def test_a_bad_value_of_an_endpoint_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(SMALL, batch=True, **{name: value})
    assert caught.value.param == name


# Models


def test_a_model_is_exactly_one_thing() -> None:
    for wrong in ({}, {"endpoints": (SMALL,), "llm": "a:B"}, {"endpoints": (SMALL,), "cascade": ("a", "b")}):
        with pytest.raises(InvalidInput, match="needs exactly one of endpoints, cascade and llm"):
            Model("x", **wrong)
    assert Model("x", llm="my_package.inside:MyLLM").llm


@pytest.mark.parametrize("wrong", ["", "x", "a:b:c", "a b:C", "a.:C", "../a:C", 3])
def test_an_llm_of_ones_own_is_a_module_and_a_class(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="llm must name a class"):
        Model("x", llm=wrong)


def test_what_belongs_to_its_models_is_not_given_to_a_cascade() -> None:
    for name, value in {"fallback": ("a",), "context": 1, "price": Price(Decimal(1))}.items():
        with pytest.raises(InvalidInput, match=f"{name} belongs to the models of the cascade"):
            Model("x", cascade=("a", "b"), **{name: value})
    with pytest.raises(InvalidInput, match="at least two"):
        Model("x", cascade=("a",))


def test_discovered_models_are_like_theirs_in_all_but_the_name() -> None:
    local = replace(model("local", "big"), discover=True, context=100)
    found = discovered(local, ["qwen3:8b", "org/name", "qwen3:8b", "", "x" * 195, "a\x1b[0m"])
    assert [made.alias for made in found] == ["local/org/name", "local/qwen3:8b"]
    (endpoint,) = found[0].endpoints
    assert (endpoint.model, endpoint.api_key, endpoint.rpm) == ("org/name", SMALL.api_key, 60)
    assert endpoint.id == EndpointSpec(URL, "org/name", None, "KEY_A").id
    assert (found[0].fallback, found[0].context, found[0].discover) == (("big",), 100, False)
    assert len(discovered(local, map(str, range(5000)))) == 1000


def test_only_one_endpoint_can_be_asked_for_its_models() -> None:
    with pytest.raises(InvalidInput, match="exactly one endpoint"):
        Model("x", (SMALL, replace(SMALL, model="b", id="")), discover=True)


# Catalogs


def test_an_unknown_alias_is_not_found_and_the_known_ones_are_listed() -> None:
    known = catalog(model("small"), model("big"))
    assert known.get("big").alias == "big"
    assert known.aliases == ("small", "big")
    with pytest.raises(NotFound) as caught:
        known.get("<script>")
    assert caught.value.message == "There is no such model; known are small, big."
    assert (caught.value.status, caught.value.param) == (404, "model")
    with pytest.raises(NotFound, match="no such model as default; known are small, big"):
        known.get()


def test_a_long_list_of_the_known_ones_is_cut() -> None:
    with pytest.raises(NotFound, match=r"known are m0, m1, .* m19 and 4980 more\.$"):
        catalog(*(model(f"m{number}") for number in range(5000))).get("x")


def test_without_any_model_the_settings_are_named() -> None:
    for alias in ("default", "gpt-4o"):
        with pytest.raises(LLMUnavailable, match="OPENAI_API_KEY"):
            Catalog.from_openai(None, None, "gpt-4o-mini").get(alias)


def test_the_openai_settings_define_the_default_and_pass_other_names_through() -> None:
    known = Catalog.from_openai(None, "sk-canary", "gpt-4o-mini")
    (endpoint,) = known.get().endpoints
    assert (endpoint.base_url, endpoint.model) == ("https://api.openai.com/v1", "gpt-4o-mini")
    assert (endpoint.api_key, endpoint.api_key_env) == (Secret("sk-canary"), "OPENAI_API_KEY")
    named = known.get("gpt-4o")
    assert (named.alias, named.endpoints[0].model, named.endpoints[0].api_key) == ("gpt-4o", "gpt-4o", endpoint.api_key)
    assert named.endpoints[0].id == endpoint.id  # or every name a user tries would have limits of its own
    with pytest.raises(InvalidInput):
        known.get("x" * 201)
    (local,) = Catalog.from_openai(URL, None, "local").get().endpoints
    assert (local.base_url, local.api_key, local.api_key_env) == (URL, None, None)


def test_a_name_that_no_model_has_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"^models.a.fallback\[1\]: there is no model named nobody\.$") as caught:
        catalog(model("a", "b", "nobody"), model("b"))
    assert caught.value.keys == ("models", "a", "fallback", 1)
    with pytest.raises(CatalogError, match=r"^models.c.cascade\[0\]: there is no model named \"x y\?\"\.$"):
        catalog(model("c", cascade=("x y\n", "b")), model("b"))


@pytest.mark.parametrize(
    ("models", "place", "circle"),
    [
        ([model("a", "a")], r"models.a.fallback\[0\]", "a → a"),
        (
            [model("z"), model("a", "z", "b"), model("b", "c"), model("c", "a")],
            r"models.a.fallback\[1\]",
            "a → b → c → a",
        ),
        (
            [model("s", cascade=("a", "t")), model("a"), model("t", cascade=("a", "s"))],
            r"models.s.cascade\[1\]",
            "s → t → s",
        ),
        ([model("a", "s"), model("b"), model("s", cascade=("b", "a"))], r"models.a.fallback\[0\]", "a → s → a"),
    ],
)
def test_what_leads_back_to_itself_is_refused(models: list[Model], place: str, circle: str) -> None:
    with pytest.raises(CatalogError, match=f"^{place}: leads back to where it began: {circle}[.]$"):
        catalog(*models)


def test_a_long_way_round_is_found_and_shown_in_part() -> None:
    circle = [model(f"m{number}", f"m{(number + 1) % 3000}") for number in range(3000)]
    with pytest.raises(CatalogError, match=r"m0 → m1 → .* → … → m0") as caught:
        catalog(*circle)
    assert len(str(caught.value)) < 300
    assert catalog(*circle[:-1], model("m2999")).get("m0")


def test_several_ways_to_one_model_are_no_circle() -> None:
    assert catalog(model("a", "b", "c"), model("b", "d"), model("c", "d"), model("d"), model("s", cascade=("a", "d")))
