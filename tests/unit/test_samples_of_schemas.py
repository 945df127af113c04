"""What is made up for a schema fits it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from app.agent.samples import sample


class Kind(Enum):
    ONE = "one"


class Leaf(BaseModel):
    kind: Kind
    word: Literal["this"]
    text: str = Field(min_length=3)
    flag: bool
    ratio: float = Field(gt=0.5)


class Tree(BaseModel):
    leaves: list[Leaf] = Field(min_length=2)
    child: Tree | None
    spare: str = "kept"


@pytest.mark.parametrize(
    "kind", [Tree, int, str, list[int], dict[str, int], Annotated[int, Field(ge=5, le=9)], int | None, float, bool]
)
def test_it_is_valid(kind: Any) -> None:
    adapter = TypeAdapter(kind)
    adapter.validate_python(sample(adapter.json_schema()))


def test_a_schema_that_says_nothing_is_an_object() -> None:
    assert sample({}) == {}
