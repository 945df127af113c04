"""The parameters a user may set for a session: described, checked, and given to the agent."""

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.agent import Chattable, Message
from app.errors import AgentFailed, InvalidInput
from tests.agents.stage import cast, said


class Tone(BaseModel):
    mood: str = Field("calm", max_length=10)
    heat: float = Field(1.0, alias="warmth")
    city: str = "Rome"

    @field_validator("city")
    @classmethod
    def _check(cls, city: str) -> str:
        if city == "exit":
            raise SystemExit
        if city == "Atlantis":
            raise ValueError("Atlantis is under water")
        if city == "nowhere":
            raise ValueError("must be a place")
        return city


class Talker(Chattable):
    id = "talker"
    params: Tone

    async def chat(self, message: Message) -> str:
        return f"{self.params.mood} {self.params.heat}"


class Plain(Chattable):
    id = "plain"

    async def chat(self, message: Message) -> str:
        return "x"


class Nested(Talker):
    id = "nested"


async def test_an_agent_sees_what_the_session_has_and_defaults_for_the_rest() -> None:
    assert await said(Talker) == "calm 1.0"
    assert await said(Talker, params={"mood": "wild", "warmth": 2}) == "wild 2.0"


async def test_params_of_a_base_class_hold() -> None:
    assert await said(Nested, params={"mood": "wild"}) == "wild 1.0"


def test_the_schema_is_published() -> None:
    schema = cast(Talker).params_schema
    assert schema is not None
    assert set(schema["properties"]) == {"mood", "warmth", "city"}
    assert cast(Plain).params_schema is None


def test_what_is_stored_is_what_was_given() -> None:
    assert cast(Talker).validate_params({}) == {}
    assert cast(Talker).validate_params({"warmth": "2.5"}) == {"warmth": "2.5"}


@pytest.mark.parametrize(
    ("params", "param", "sentence"),
    [
        ({"mood": 7}, "agent.params.mood", "Input should be a valid string."),
        ({"mood": "x" * 11}, "agent.params.mood", "String should have at most 10 characters."),
        ({"warmth": "hot stuff"}, "agent.params.warmth", "Input should be a valid number"),
        ({"city": "Atlantis"}, "agent.params.city", "The value is not valid."),
        ({"city": "nowhere"}, "agent.params.city", "must be a place."),
        ({"colour": "red"}, "agent.params", "This agent's parameters are mood, warmth, city."),
        ({"mood": {1, 2}}, "agent.params", "The agent's parameters must be plain JSON."),
        ({"warmth": float("nan")}, "agent.params", "The agent's parameters must be plain JSON."),
        ([], "agent.params", "The agent's parameters must be an object."),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(params: dict[str, object], param: str, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        cast(Talker).validate_params(params)
    assert caught.value.param == param
    assert caught.value.message.startswith(sentence)
    assert "hot stuff" not in caught.value.message


def test_an_agent_without_parameters_takes_none() -> None:
    assert cast(Plain).validate_params({}) == {}
    with pytest.raises(InvalidInput, match="no parameters"):
        cast(Plain).validate_params({"mood": "x"})


def test_an_agent_may_take_what_it_does_not_name() -> None:
    class Anything(BaseModel):
        model_config = ConfigDict(extra="allow")

    agent = type("Open", (Plain,), {"id": "open", "__annotations__": {"params": Anything}, "__module__": __name__})
    assert cast(agent).validate_params({"any": [1]}) == {"any": [1]}


def test_a_validator_that_exits_fails_the_request_and_not_the_server() -> None:
    with pytest.raises(AgentFailed, match="SystemExit"):
        cast(Talker).validate_params({"city": "exit"})


async def test_stored_parameters_that_no_longer_fit_are_a_clear_error() -> None:
    with pytest.raises(InvalidInput) as caught:
        await said(Talker, params={"mood": 7})
    assert caught.value.param == "agent.params.mood"


async def test_nul_and_lone_surrogates_in_parameters_are_replaced() -> None:
    assert cast(Talker).validate_params({"mood": "a\x00\ud800"}) == {"mood": "a\ufffd\ufffd"}
