"""Examples for the OpenAPI document, made from the schemas: a word's example is the same wherever the word stands."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

UUID = "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
FILE = f"file-{UUID.replace('-', '')}"
WORDS: dict[str, Any] = {
    "access_token": "at_example",
    "agent_id": "fake_echo_agent",
    "agents": ["fake_echo_agent"],
    "archived_at": None,
    "comment": "Just what I needed.",
    "completion": 2,
    "content": "Hello",
    "cost": "0.00012",
    "cron": "30 7 * * MON-FRI",
    "days": 90,
    "description": "Repeats what it is told.",
    "embedding": [0.25, -0.5],
    "error": None,
    "expires_in": 900,
    "file": "Why?",
    "filename": "questions.txt",
    "finish_reason": "stop",
    "function_call": None,
    "functions": [],
    "hint": "x7Qz",
    "hits": 3,
    "input": ["Hello"],
    "key": "ck_example",
    "kind": "chat",
    "logprobs": None,
    "messages": [{"role": "user", "content": "Hello"}],
    "misses": 1,
    "model": "fake_echo_agent",
    "money": "5.00",
    "name": "ada",
    "new_password": "a longer pass phrase",
    "old_password": "correct horse battery",
    "owned_by": "agents",
    "params": {},
    "params_schema": None,
    "password": "correct horse battery",
    "purpose": "user_data",
    "rating": 1,
    "refresh_token": "rt_example",
    "resets_at": "2030-01-02T00:00:00Z",
    "scope_id": UUID,
    "role": "user",
    "saved": "0",
    "scopes": ["chat"],
    "source": "fake_echo_agent.py",
    "text": "Hello",
    "timezone": "Europe/Berlin",
    "title": "Holidays",
    "token_type": "bearer",
    "tokens": 100_000,
    "tool_calls": [],
    "user": "ada",
    "url": "https://example.org/hook",
    "username": "ada",
}
"""What stands for a property of that name, if its schema has no example of its own."""
_IN_OBJECTS: dict[tuple[str, str], Any] = {
    ("AgentChoice", "id"): "fake_echo_agent",
    ("AgentOfSession", "id"): "fake_echo_agent",
    ("AgentOut", "id"): "fake_echo_agent",
    ("BenchOut", "agents"): [],
    ("BudgetIn", "id"): UUID,
    ("Change", "cost"): ["0.00012", "0.00009"],
    ("Change", "tokens"): [120, 90],
    ("CompletionIn", "prompt"): "Hello",
    ("EmbeddingsIn", "model"): "embedding",
    ("FileDeleted", "id"): FILE,
    ("FileOut", "id"): FILE,
    ("FilesOut", "first_id"): FILE,
    ("FilesOut", "last_id"): FILE,
    ("ModelOut", "id"): "fake_echo_agent",
    ("PluginOfPreset", "id"): "fake_echo_agent",
    ("RunOut", "status"): "completed",
    ("ScheduleOut", "input"): "Say good morning.",
    ("TaskOut", "input"): "Say good morning.",
    ("WebhookOut", "events"): ["run.completed"],
    ("NewWebhook", "events"): ["run.completed"],
    ("UsedOut", "id"): "2030-01-01",
}
"""Words that mean another thing in one kind of object."""
_UNKNOWN: Any = object()
_BY_TYPE: dict[str, Any] = {"string": "text", "integer": 1, "number": 1.0, "boolean": False, "null": None, "object": {}}
_BY_FORMAT = {"uuid": UUID, "date-time": "2030-01-01T12:00:00Z"}


def example(schema: Json, schemas: Json, *, is_request: bool) -> Any:
    """An example for a schema. A request's has what is required, or else its first property; an answer's has everything."""
    return _Maker(schemas, is_request).make(schema)


class _Maker:
    def __init__(self, schemas: Json, is_request: bool) -> None:
        self._schemas = schemas
        self._is_request = is_request

    def make(self, schema: Json, name: str = "", of: str = "") -> Any:
        """An example of what stands under `name` in an object `of` a kind."""
        known = self._known(schema, name, of)
        if known is not _UNKNOWN:
            return known
        if reference := schema.get("$ref"):
            kind = reference.rsplit("/", 1)[1]
            return self.make(self._schemas[kind], of=kind)
        return schema["enum"][0] if "enum" in schema else self._of_type(schema, of)

    def _known(self, schema: Json, name: str, of: str) -> Any:
        if schema.get("examples"):
            return schema["examples"][0]
        if (of, name) in _IN_OBJECTS:
            return _IN_OBJECTS[of, name]
        if schema.get("const") is not None:
            return schema["const"]
        if schema.get("default") is not None and (self._is_request or name == "object"):
            return schema["default"]
        return WORDS.get(name, _UNKNOWN)

    def _of_type(self, schema: Json, of: str) -> Any:
        choices = schema.get("anyOf", [{}])
        if properties := schema.get("properties"):
            needed = [*schema.get("required", ()), *choices[0].get("required", ())]
            wanted = (needed or list(properties)[:1]) if self._is_request else properties
            kind = of or schema.get("title", "")
            return {name: self.make(properties[name], name, kind) for name in wanted}
        if choices[0]:
            return self.make(choices[0])
        if schema.get("type") == "array":
            return [self.make(each) for each in schema.get("prefixItems") or [schema.get("items", {})]]
        return _BY_FORMAT.get(schema.get("format", ""), _BY_TYPE.get(schema.get("type", "object"), {}))
