"""One agent as it was loaded: its class, what it declares, and the code it came from."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.agent.chattable import Chattable
from app.agent.plain import clean, plain
from app.agent.threads import Threads
from app.domain import PRESET_ID
from app.errors import AgentFailed, InvalidInput, PluginError

log = logging.getLogger(__name__)

ID = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
RESERVED = re.compile(rf"mcp|tasks|{PRESET_ID}")
"""Ids that are the platform's: paths below `/api/v1/agents`, and the ids of presets."""
"""What an agent's id may be."""
THREADS = 16
"""Threads for one agent: so many messages a synchronous agent answers at once."""
MAX_DESCRIPTION = 2_000
"""The longest description, in characters."""
MAX_SENTENCE = 300
"""The longest reason that is passed on, in characters."""


class Code:
    """The modules of one load of a file, forgotten when nobody holds them any more."""

    def __init__(self, name: str, digest: str = "") -> None:
        self.name = name
        self.digest = digest
        self._holders = 0

    def hold(self) -> None:
        """Keep the modules."""
        self._holders += 1

    def release(self) -> None:
        """Keep them no longer; the last one to say so takes them out of `sys.modules`."""
        self._holders -= 1
        if self._holders <= 0:
            self.forget()

    def forget(self) -> None:
        """Take the modules out of `sys.modules`."""
        for name in [name for name in sys.modules if name == self.name or name.startswith(self.name + ".")]:
            del sys.modules[name]


class AgentVersion:
    """An agent as one load of its file made it. Does not change after that."""

    def __init__(
        self,
        cls: type[Chattable],
        source: str,
        code: Code,
        variables: Mapping[str, str],
        servers: Collection[str] | None = None,
    ) -> None:
        """`servers` are the names of the MCP servers that there are; None leaves those of the agent unchecked."""
        self.cls = cls
        self.id = cls.id
        self.source = source
        """Its file, relative to the folder of agents."""
        self.code = code
        self.digest = code.digest
        """Of the text it was loaded from: another text may answer otherwise."""
        self.shares_cache = cls.shares_cache is True
        self.description = _description(cls)
        self.params_model = _declared(cls, "params")
        self.state_model = _declared(cls, "state")
        self._settings = _settings(self.id, _declared(cls, "settings"), variables)
        self.params_schema: dict[str, Any] | None = self.params_model.model_json_schema() if self.params_model else None
        """JSON Schema of the parameters a session may set; None when there are none."""
        self._has_defaults = False
        self.uses_memory = _says(cls, code, *cls._remembering)
        """Whether what it remembers is to be loaded before a message and stored after it."""
        self.uses_history = cls.chat.__module__.startswith("app.") or _says(cls, code, "history")
        """Whether it looks at what was said before, so that a summary of it may be worth its price."""
        self.threads = Threads(f"agent {self.id}", THREADS)
        if self.state_model:
            _default(self.state_model)
        if cls.tools:
            _check_tools(cls, servers)

    def validate_params(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters as they are to be stored: what was given, as plain JSON.

        `InvalidInput` names the field as `agent.params.FIELD`; its sentence does not repeat the value.
        """
        if not isinstance(params, Mapping):
            raise InvalidInput("The agent's parameters must be an object.", param="agent.params")
        known = _names(self.params_model)
        if _is_closed(self.params_model) and any(name not in known for name in params):
            text = f"This agent's parameters are {', '.join(known)}." if known else "This agent has no parameters."
            raise InvalidInput(text, param="agent.params")
        try:
            stored: Mapping[str, Any] = plain(params)
        except (TypeError, RecursionError):
            raise InvalidInput("The agent's parameters must be plain JSON.", param="agent.params") from None
        self.make_params(stored)
        return stored

    def check_defaults(self) -> None:
        """`InvalidInput` when it cannot do with its own parameters alone; that it can is found out once."""
        if not self._has_defaults:
            self.validate_params({})
            self._has_defaults = True

    def make_params(self, params: Mapping[str, Any]) -> BaseModel | None:
        """The parameters as the agent sees them, or None when it declares none; `InvalidInput` as above."""
        if self.params_model is None:
            return None
        try:
            return self.params_model.model_validate(params)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
        except BaseException as error:  # an agent's own validator
            log.error("agent %s cannot check its parameters", self.id, exc_info=error)
            raise AgentFailed(f"The agent failed: {type(error).__name__}.") from error
        field = problem["loc"][0] if problem["loc"] else None
        param = f"agent.params.{field}" if field in _names(self.params_model) else "agent.params"
        raise InvalidInput(f"{_sentence(problem)}.", param=param)

    def make_settings(self) -> BaseModel | None:
        """A copy of the operator's settings, so that no run changes another's."""
        return self._settings.model_copy(deep=True) if self._settings else None

    def make_state(self, stored: Mapping[str, Any] | None) -> BaseModel | None:
        """The state to begin with: as stored, or new when there is none or it no longer fits."""
        if self.state_model is None:
            return None
        if stored is not None:
            try:
                return self.state_model.model_validate(stored)
            except ValidationError:
                log.warning("agent %s: the stored state does not fit and is begun anew", self.id)
        return self.state_model()


def declared_in(module: str, namespace: Mapping[str, Any]) -> list[type[Chattable]]:
    """The agents that a module, or one inside it, declares, in its order; `PluginError` for a wrong or repeated id."""
    found = [
        value
        for value in dict.fromkeys(filter(inspect.isclass, namespace.values()))
        if issubclass(value, Chattable) and "id" in vars(value) and f"{value.__module__}.".startswith(f"{module}.")
    ]
    ids: list[str] = []
    for cls in found:
        if not isinstance(cls.id, str) or not ID.fullmatch(cls.id):
            raise PluginError(f"the id of {cls.__name__} must be 1 to 64 of a-z, 0-9, _, . and -, the first no . or -")
        if RESERVED.fullmatch(cls.id):
            raise PluginError(f"the id {cls.id} is taken by the platform")
        if cls.id in ids:
            raise PluginError(f"the id {cls.id} is given twice")
        ids.append(cls.id)
    return found


def _says(cls: type[Chattable], code: Code, *words: str) -> bool:
    """Whether a word stands in the agent's modules, or in one that a class used there comes from; also when that cannot be told."""
    names = [name for name in sys.modules if name == code.name or name.startswith(code.name + ".")]
    classes = [value for name in names for value in vars(sys.modules[name]).values() if inspect.isclass(value)]
    names += [base.__module__ for used in (cls, *classes) if issubclass(used, Chattable) for base in used.__mro__]
    for name in dict.fromkeys(names):
        if name.startswith("app.") or name in ("builtins", "typing", "abc"):
            continue
        try:
            text = inspect.getsource(sys.modules[name])
            if any(word in text for word in words):
                return True
        except (OSError, KeyError, TypeError):
            return True
    return False


def _description(cls: type[Chattable]) -> str:
    text = vars(cls).get("__doc__") or getattr(sys.modules.get(cls.__module__), "__doc__", None) or ""
    return clean(inspect.cleandoc(text))[:MAX_DESCRIPTION]


def _declared(cls: type[Chattable], name: str) -> type[BaseModel] | None:
    """The model that the nearest class in the line annotates `name` with."""
    for base in cls.__mro__:
        if (annotation := inspect.get_annotations(base).get(name)) is None:
            continue
        holder = type("Holder", (), {"__annotations__": {name: annotation}})
        try:
            model = get_type_hints(holder, vars(sys.modules[base.__module__]), dict(vars(base)))[name]
        except NameError as error:
            raise PluginError(f"{cls.__name__}.{name} is annotated with {error.name}, which is not defined") from error
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise PluginError(f"{cls.__name__}.{name} must be annotated with a pydantic model")
        return model
    return None


def _settings(agent_id: str, model: type[BaseModel] | None, variables: Mapping[str, str]) -> BaseModel | None:
    if model is None:
        return None
    names = {field: variable(agent_id, field) for field in model.model_fields}
    given = {field: variables[name] for field, name in names.items() if variables.get(name)}
    try:
        return model.model_validate(given, by_name=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][0]) if problem["loc"] else "*"
    name = names.get(field, variable(agent_id, field))
    if problem["type"] == "missing":
        raise PluginError(f"needs {name}")
    if problem["type"] in ("value_error", "assertion_error"):  # an agent's own words, which may hold the value
        raise PluginError(f"{name} is not valid")
    raise PluginError(f"{name}: {_sentence(problem)}")


def variable(agent_id: str, field: str) -> str:
    """The variable that sets `field` of an agent's settings."""
    return f"AGENT_{re.sub(r'[^A-Za-z0-9]', '_', agent_id)}_{field}".upper()


def _default(model: type[BaseModel]) -> None:
    try:
        model()
    except ValidationError:
        raise PluginError(f"every field of the state {model.__name__} needs a default") from None


def _check_tools(cls: type[Chattable], servers: Collection[str] | None) -> None:
    from app.agent.tools import ToolRegistry

    for name in (tool for tool in cls.tools if isinstance(tool, str)):
        if not name.startswith("mcp:"):
            raise PluginError(f"{cls.__name__}.tools: {clean(name)[:64]} is neither a function nor mcp:NAME")
        if servers is not None and name.removeprefix("mcp:") not in servers:
            raise PluginError(f"needs the MCP server {clean(name)[4:68]}, which MCP_FILE does not have")

    try:
        ToolRegistry(tool for tool in cls.tools if not isinstance(tool, str))
    except (TypeError, NameError, InvalidInput) as error:
        raise PluginError(f"{cls.__name__}.tools: {error}") from error


def _names(model: type[BaseModel] | None) -> list[str]:
    fields = model.model_fields.items() if model else ()
    return [field.alias or name for name, field in fields]


def _is_closed(model: type[BaseModel] | None) -> bool:
    return model is None or "extra" not in model.model_config


def _sentence(problem: ErrorDetails) -> str:
    """What pydantic, or an agent's own validator, says is wrong, unless it repeats what was given."""
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    given = problem["input"]
    values = list(given.values()) if isinstance(given, Mapping) else [given]
    echoes = any(isinstance(value, str) and len(value) > 3 and value in text for value in values)
    return "The value is not valid" if echoes or len(text) > MAX_SENTENCE else clean(text)
