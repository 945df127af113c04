"""The models file: what it says, what is wrong with it and where, and what an edit does while the server runs."""

import asyncio
import logging
import os
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.llm.catalog import Catalog, CatalogError, EndpointSpec, Model, Price, Secret
from app.llm.endpoints import OwnLLMs
from app.llm.models_file import MAX_BYTES, ModelsFile, read
from app.llm.toml_lines import Keys, line_of

ROOT = Path(__file__).parents[2]
VARIABLES = {"KEY_A": "sk-canary-a", "KEY_B": "sk-canary-b", "EMPTY": "", "ACCENT": "clé", "LINES": "a\nb"}
ISSUE = """\
[models.small]
endpoints = [
  { base_url = "http://one:9001/v1", model = "qwen3-4b", api_key_env = "KEY_A", weight = 2, max_concurrency = 4, rpm = 600, tpm = 200_000 },
  { base_url = "http://two:9002/v1", model = "qwen3-4b" },
]
fallback = ["big"]
context = 32_768
price = { prompt = 0.10, completion = 0.40, cached = 0.05 }   # per million tokens
defaults = { temperature = 0.2 }
[models.big]
endpoints = [{ base_url = "https://api.example.com/v1", model = "large", api_key_env = "KEY_B" }]
[models.smart]
cascade = ["small", "big"]
[models.mine]
llm = "my_package:MyLLM"          # a BaseLLM of one's own
"""
HEAD = '[models.a]\nendpoints = [{ base_url = "http://h/v1", model = "m" }]\n'
OPENAI = Catalog.from_openai("http://openai/v1", "sk-canary", "gpt")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def written(path: Path, text: str, default: Model | None = None) -> Catalog:
    path.write_text(text, encoding="utf-8")
    return read(path, VARIABLES, default)


def problem(path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        written(path, text)
    said = str(caught.value)
    assert "\n" not in said
    assert "canary" not in said
    assert str(path.parent) not in said
    assert len(said) < 600
    return said


def test_the_shape_of_the_file(path: Path) -> None:
    catalog = written(path, ISSUE)
    assert catalog.aliases == ("small", "big", "smart", "mine")
    assert not catalog.passes_through
    small = catalog.get("small")
    assert small == Model(
        "small",
        (
            EndpointSpec(
                "http://one:9001/v1",
                "qwen3-4b",
                Secret("sk-canary-a"),
                "KEY_A",
                weight=2,
                max_concurrency=4,
                rpm=600,
                tpm=200_000,
            ),
            EndpointSpec("http://two:9002/v1", "qwen3-4b"),
        ),
        fallback=("big",),
        context=32_768,
        price=Price(Decimal("0.1"), Decimal("0.4"), Decimal("0.05")),
        defaults={"temperature": 0.2},
    )
    assert (catalog.get("smart").cascade, catalog.get("mine").llm) == (("small", "big"), "my_package:MyLLM")


def test_tables_may_be_written_in_any_way_of_toml(path: Path) -> None:
    catalog = written(
        path, 'models."qwen3.5".context = 9\n[[models."qwen3.5".endpoints]]\nbase_url="http://h"\nmodel="m"\n'
    )
    assert catalog.get("qwen3.5").endpoints == (EndpointSpec("http://h", "m"),)
    assert written(path, "\ufeff" + HEAD.replace("\n", "\r\n")).aliases == ("a",)


def test_the_files_default_wins_over_the_openai_settings(path: Path) -> None:
    default = OPENAI.get()
    assert written(path, HEAD, default).get() == default
    assert written(path, HEAD + 'fallback = ["default"]', default).get("a").fallback == ("default",)
    assert written(path, HEAD.replace("models.a", "models.default"), default).get().endpoints[0].model == "m"


def test_the_lowest_limit_of_an_endpoint_holds_in_all_its_models(path: Path) -> None:
    row = '{{ base_url = "http://h/v1", model = "m", {} }}'
    text = "".join(
        f"[models.{alias}]\nendpoints = [{row.format(limits)}]\n"
        for alias, limits in (("a", "rpm = 9, tpm = 5, weight = 3"), ("b", "rpm = 8"), ("c", "weight = 2"))
    )
    found = [model.endpoints[0] for model in written(path, text).models.values()]
    assert [(e.rpm, e.tpm, e.max_concurrency, e.weight) for e in found] == [
        (8, 5, None, 3),
        (8, 5, None, 1),
        (8, 5, None, 2),
    ]


ROWS = """\
[models.a]  # line 1
endpoints = [
  { base_url = "http://h/v1", model = "m" },

  # a comment with ] and }
  { base_url = "http://h/v1", model = "n[],{}", MARK },
]
"""


@pytest.mark.parametrize(
    ("mark", "line", "said"),
    [
        ("weight = 0", 6, "endpoints[1].weight: must be an integer from 1 to 1000."),
        ("weight = 1.5", 6, "endpoints[1].weight: must be an integer from 1 to 1000."),
        ("max_concurrency = 10_001", 6, "endpoints[1].max_concurrency: must be an integer from 1 to 10000."),
        ("rpm = true", 6, "endpoints[1].rpm: must be an integer from 1 to 10000000."),
        ("batch = 1", 6, "endpoints[1].batch: must be true or false."),
        ("batch_deadline = 60", 6, "endpoints[1].batch_deadline: needs batch = true beside it."),
        (
            "batch = true, batch_deadline = 86_401",
            6,
            "endpoints[1].batch_deadline: must be an integer from 1 to 86400.",
        ),
        ("first_token_seconds = 601", 6, "endpoints[1].first_token_seconds: must be an integer from 1 to 600."),
        ("batches = true", 6, "endpoints[1].batches: is not known here; known are base_url, model, api_key_env, "),
        ('tpm = "9"', 6, "endpoints[1].tpm: must be an integer from 1 to 10000000000."),
        (
            'api_key = "sk-canary"',
            6,
            "endpoints[1].api_key: is not known here; known are base_url, model, api_key_env, ",
        ),
        ('api_key_env = "sk-canary"', 6, "endpoints[1].api_key_env: must be the name of a variable that holds the key"),
        ('api_key_env = "gsk_canary"', 6, "endpoints[1].api_key_env: names a variable that is missing or empty"),
        ('api_key_env = "EMPTY"', 6, "endpoints[1].api_key_env: names a variable that is missing or empty"),
        ('api_key_env = "ACCENT"', 6, "endpoints[1].api_key_env: names a variable whose value is not printable ASCII"),
        ('api_key_env = "LINES"', 6, "endpoints[1].api_key_env: names a variable whose value is not printable ASCII"),
        ("api_key_env = 1", 6, "endpoints[1].api_key_env: must be the name of a variable"),
    ],
)
def test_what_is_wrong_in_an_array_over_several_lines_is_found(path: Path, mark: str, line: int, said: str) -> None:
    assert problem(path, ROWS.replace("MARK", mark)).startswith(f"models.toml, line {line}, models.a.{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "models.toml, models: must hold at least one table, such as [models.default]."),
        ("models = 3", "models.toml, line 1, models: must hold at least one table"),
        ("\nmodel = 3", "models.toml, line 2, model: is not known here; known are models."),
        ("[models]\na = 3", "models.toml, line 2, models.a: must be a table."),
        ('[models."a b"]', 'models.toml, line 1, models."a b": an alias is up to 64 letters'),
        (f"[models.{'a' * 65}]", f"models.toml, line 1, models.{'a' * 64}: an alias is up to 64 letters"),
        ("[models.a]", "models.toml, line 1, models.a: needs exactly one of endpoints, cascade and llm."),
        ("[models.a]\nendpoints = []", "models.toml, line 2, models.a.endpoints: must be an array of 1 to 100 tables"),
        ("[models.a]\nendpoints = 3", "models.toml, line 2, models.a.endpoints: must be an array of 1 to 100 tables"),
        ("[models.a]\nendpoints = [\n3]", "models.toml, line 3, models.a.endpoints[0]: must be a table."),
        ("[models.a]\nendpoints = [\n{}]", "models.toml, line 3, models.a.endpoints[0]: needs base_url."),
        (
            '[models.a]\n[[models.a.endpoints]]\nbase_url = "http://h"',
            "models.toml, line 2, models.a.endpoints[0]: needs model.",
        ),
        (HEAD.replace("http", "ftp"), "models.toml, line 2, models.a.endpoints[0].base_url: must be an address"),
        (HEAD.replace('"http://h/v1"', "3"), "models.toml, line 2, models.a.endpoints[0].base_url: must be an address"),
        (HEAD.replace('"m"', '""'), "models.toml, line 2, models.a.endpoints[0].model: must be a name"),
        (
            ROWS.replace("n[],{}", "m").replace(", MARK", ""),
            "models.toml, line 6, models.a.endpoints[1]: is there already",
        ),
        (HEAD + "cascade = ['a','b']", "models.toml, line 1, models.a: needs exactly one of"),
        (HEAD + "context = 0", "models.toml, line 3, models.a.context: must be an integer"),
        (HEAD + "discover = 1", "models.toml, line 3, models.a.discover: must be true or false."),
        (HEAD + "fallback = 'b'", "models.toml, line 3, models.a.fallback: must be an array of up to 100 aliases"),
        (HEAD + "fallback = [\n1]", "models.toml, line 4, models.a.fallback[0]: must be an alias"),
        (HEAD + "fallback = ['b',\n'b']", "models.toml, line 4, models.a.fallback[1]: is named twice."),
        (HEAD + "fallback = [\n'b']", "models.toml, line 4, models.a.fallback[0]: there is no model named b."),
        (
            HEAD + "\nfallback = ['a']",
            "models.toml, line 4, models.a.fallback[0]: leads back to where it began: a → a.",
        ),
        (HEAD + "price = 1", "models.toml, line 3, models.a.price: must be a table."),
        (HEAD + "price = {prompt = 1}", "models.toml, line 3, models.a.price: needs completion."),
        (
            HEAD + "price.prompt = -0.1\nprice.completion = 1",
            "models.toml, line 3, models.a.price.prompt: must be a number from 0",
        ),
        (
            HEAD + "price.prompt = 1\nprice.completion = nan",
            "models.toml, line 4, models.a.price.completion: must be a number",
        ),
        (
            HEAD + "price = {prompt = 1, completion = 1e400}",
            "models.toml, line 3, models.a.price.completion: must be a number",
        ),
        (
            HEAD + "price = {prompt = true, completion = 1}",
            "models.toml, line 3, models.a.price.prompt: must be a number: money",
        ),
        (
            HEAD + "price = {prompt = 1, completion = 1, x = 1}",
            "models.toml, line 3, models.a.price.x: is not known here",
        ),
        (HEAD + "defaults = 'hot'", "models.toml, line 3, models.a.defaults: must be a table."),
        (
            HEAD + "[models.a.defaults]\n\ntemperature = 3",
            "models.toml, line 5, models.a.defaults.temperature: must be a number",
        ),
        (HEAD + "defaults = { best_of = 3 }", "models.toml, line 3, models.a.defaults.best_of: is not an option"),
        (HEAD + "defaults = { model = 'x' }", "models.toml, line 3, models.a.defaults.model: belongs to an endpoint."),
        ("[models.a]\nllm = 'x'", "models.toml, line 2, models.a.llm: must name a class"),
        ("[models.a]\ncascade = ['b']", "models.toml, line 2, models.a.cascade: must name at least two"),
        (
            HEAD + "endpoint = 1",
            "models.toml, line 3, models.a.endpoint: is not known here; known are endpoints, fallback",
        ),
        ("[models.gpt-4.1]", "models.toml, line 1, models.gpt-4.1: is not known here"),
        ("[models.a\n", "models.toml, line 1: Expected ']' at the end of a table declaration."),
        ("[models.a]\nx = \n", "models.toml, line 2: Invalid value."),
        ("[models.a]\nx = '''", "models.toml, at its end: Expected"),
        ("x = " + "[" * 50_000, "models.toml: holds a number or nesting that is too long to be read."),
        ("x = " + "9" * 5000, "models.toml: holds a number or nesting that is too long to be read."),
        ("#" * (MAX_BYTES + 1), "models.toml: is larger than 262144 bytes."),
    ],
)
def test_an_error_is_one_sentence_with_file_line_and_key(path: Path, text: str, said: str) -> None:
    assert problem(path, text).startswith(said)


def test_a_name_with_a_dot_gets_a_hint(path: Path) -> None:
    assert problem(path, "[models.gpt-4.1]\nllm = 'a:B'").endswith("A name with a dot in it is written in quotes.")
    assert problem(path, "[model.a]\nllm = 'a:B'").endswith("known are models.")
    assert problem(path, HEAD.replace("model =", "api_key = 'k', model =")).endswith("the variable that holds one.")
    assert problem(path, HEAD + HEAD) == "models.toml, line 3: Cannot declare models.a twice."


def test_a_file_that_is_no_text_or_cannot_be_read_is_named(path: Path) -> None:
    path.write_bytes(b"\n\n# \xff")
    with pytest.raises(SettingsError, match=r"^models\.toml, line 3: is not UTF-8\.$"):
        read(path, {})
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingsError, match=r"^models\.toml: cannot be read \(Is a directory\)\.$"):
        read(path, {})


# Lines


TRICKY = r'''# [no.table]
a."b.c" . d = 1  # = 2
"quo\"te" = "[not]\n = {a table}"
text = """
[no] = """ # closed
more = """" " \""" [x]
""""
[ t . "u v" ]
k = inf
endpoints = [
  { base_url = "]", weight = 1 },  # ]
  { base_url = "[", weight = 2 },
]
[[rows]]
n = 1
[[rows]]
v = """x"""
'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("a", "b.c", "d"), 2),
        (('quo"te',), 3),
        (("text",), 4),
        (("more",), 6),
        (("t", "u v"), 8),
        (("t", "u v", "endpoints", 0, "weight"), 11),
        (("t", "u v", "endpoints", 1), 12),
        (("rows", 0), 14),
        (("rows", 1, "v"), 17),
        (("rows", 1, "missing", 3), 16),
        (("missing",), None),
    ],
)
def test_every_key_of_a_tricky_text_is_found_with_its_line(keys: Keys, line: int | None) -> None:
    assert line_of(TRICKY, keys) == line


# While the server runs


def edited(path: Path, text: str) -> None:
    """Replace the file as careful editors do: never half of it is there."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


async def test_variables_that_cannot_be_read_keep_the_last_good_models(tmp_path: Path) -> None:
    path, known = tmp_path / "models.toml", ["good"]

    def variables() -> dict[str, str]:
        if not known:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")
        return dict(VARIABLES)

    edited(path, '[models.a]\nllm = "a:B"\n')
    file = ModelsFile(path, variables)
    known.clear()
    edited(path, '[models.b]\nllm = "a:B"\n')
    await file.refresh()
    assert (file.problem, file.catalog.aliases) == (".env cannot be read (UnicodeDecodeError).", ("a",))


async def test_an_edit_is_live_and_a_broken_one_keeps_the_last_good(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path.write_text(HEAD)
    file = ModelsFile(path, lambda: VARIABLES, OPENAI)
    first = file.catalog
    await file.refresh()
    assert file.catalog is first
    edited(path, HEAD.replace("models.a", "models.b"))
    await file.refresh()
    assert (file.catalog.aliases, file.problem) == (("b", "default"), None)
    good = file.catalog
    edited(path, HEAD + "weight = 1")
    for _ in range(3):
        await file.refresh()
    assert file.catalog is good
    assert file.problem is not None
    assert file.problem.startswith("models.toml, line 3, models.a.weight: is not known here")
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"the models stay as they were: {file.problem}"
    ]
    path.unlink()
    await file.refresh()
    assert file.catalog is good
    assert file.problem == "models.toml: cannot be read (No such file or directory)."
    edited(path, HEAD)
    await file.refresh()
    assert (file.catalog.aliases, file.problem) == (("a", "default"), None)


async def test_a_file_that_is_made_later_ends_what_was_passed_through(path: Path) -> None:
    file = ModelsFile(path, lambda: VARIABLES, OPENAI)
    await file.refresh()
    assert file.catalog is OPENAI
    edited(path, HEAD)
    await file.refresh()
    assert file.catalog.aliases == ("a", "default")
    assert not file.catalog.passes_through


async def test_a_key_that_is_set_later_is_seen_at_the_next_reading(path: Path) -> None:
    known = {"KEY_A": "one"}
    text = HEAD.replace('"m" ', '"m", api_key_env = "KEY_A" ')
    path.write_text(text)
    file = ModelsFile(path, lambda: dict(known))
    known["KEY_A"] = "two"
    edited(path, text)
    await file.refresh()
    assert file.catalog.get("a").endpoints[0].api_key == Secret("two")


async def test_the_file_is_watched(path: Path) -> None:
    file = ModelsFile(path, dict)
    watching = asyncio.create_task(file.watch())
    edited(path, HEAD)
    async with asyncio.timeout(10):
        while not file.catalog.models:
            await asyncio.sleep(0.02)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_a_broken_file_at_the_start_is_an_error_of_the_settings(path: Path) -> None:
    path.write_text("[models.a]")
    with pytest.raises(SettingsError, match=r"models\.toml, line 1, models\.a: needs exactly one of"):
        ModelsFile(path, dict)


def test_what_else_is_wrong_with_a_catalog_is_told_with_its_line(path: Path) -> None:
    def objects(_: Catalog) -> None:
        raise CatalogError(("models", "b", "llm"), "cannot be made.")

    path.write_text(HEAD + "[models.b]\nllm = 'nowhere:LLM'\n")
    with pytest.raises(SettingsError, match=r"^models\.toml, line 4, models\.b\.llm: cannot be made\.$"):
        ModelsFile(path, dict, check=objects)
    with pytest.raises(SettingsError, match=r"^models\.toml, .*ModuleNotFoundError"):
        ModelsFile(path, dict, check=OwnLLMs().load)


def test_the_files_aliases_are_listed_before_those_that_were_found(path: Path) -> None:
    path.write_text(HEAD)
    file = ModelsFile(path, dict)
    known = file.catalog
    file.extend(known, [replace(known.models["a"], alias=name) for name in ("Z", "a")])
    assert (file.catalog.aliases, file.catalog.models["a"]) == (("a", "Z"), known.models["a"])


# The page about it


BLOCKS = re.findall(
    r"^```toml\n(.*?)^```$", (ROOT / "docs/models.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_the_page_is_a_working_file(path: Path, block: str) -> None:
    path.write_text(block)
    names = re.findall(r'api_key_env = "(\w+)"', block)
    assert read(path, dict.fromkeys(names, "a key")).models


def test_the_page_shows_a_vendor_servers_of_ones_own_and_a_cascade() -> None:
    page = "\n".join(BLOCKS)
    assert len(BLOCKS) == 5
    for word in ("https://api.openai.com/v1", "11434", "vLLM", "llama.cpp", "cascade = ", "llm = ", "discover = true"):
        assert word in page, word
