"""The nouns."""

from __future__ import annotations

import time
from decimal import Decimal
from uuid import UUID

import pytest

from app.domain import Message, Principal, Role, RunStatus, Scope, Usage, User, new_id


def test_ids_are_version_7_in_the_order_of_time() -> None:
    first = new_id()
    time.sleep(0.002)
    second = new_id()
    assert first < second
    assert (first.version, first.variant) == (7, UUID(int=0x8 << 60).variant)
    assert abs((first.int >> 80) / 1000 - time.time()) < 5
    assert len({new_id() for _ in range(1000)}) == 1000


def test_usage_adds_up_and_keeps_its_flag() -> None:
    total = Usage(1, 2, 3, 4, Decimal("0.5")) + Usage(10, 20, 30, 40, Decimal("0.25"), estimated=True)
    assert total == Usage(11, 22, 33, 44, Decimal("0.75"), True)
    assert total.total == 33


@pytest.mark.parametrize(
    ("cost", "text"),
    [("0E-9", "0"), ("0.012500000", "0.0125"), ("1E+2", "100"), ("20.000", "20"), ("1E-7", "0.0000001")],
)
def test_money_is_a_plain_number(cost: str, text: str) -> None:
    assert Usage(cost=Decimal(cost)).money == text


@pytest.mark.parametrize(
    ("message", "type"),
    [
        (Message.user("x"), "human"),
        (Message.assistant("x"), "ai"),
        (Message.system("x"), "system"),
        (Message("tool", "x"), "tool"),
    ],
)
def test_a_message_knows_its_seed_name(message: Message, type: str) -> None:
    assert message.type == type


def test_a_message_with_parts_is_sent_as_parts() -> None:
    parts = [{"type": "text", "text": "hi"}]
    assert Message.user("hi", parts=parts, name="bo").to_openai() == {"role": "user", "content": parts, "name": "bo"}
    assert Message.user("hi").to_openai() == {"role": "user", "content": "hi"}


def test_only_waiting_and_running_states_are_not_final() -> None:
    assert [status for status in RunStatus if not status.is_final] == ["queued", "running", "waiting"]


def test_an_administrator_without_the_scope_is_none() -> None:
    admin = User(new_id(), "a", Role.ADMIN)
    assert Principal(admin, frozenset(Scope)).is_admin
    assert not Principal(admin, frozenset({Scope.CHAT})).is_admin
    assert not Principal(User(new_id(), "u"), frozenset(Scope)).is_admin
    assert Principal(admin, frozenset(Scope), acts_for_all=True).owner is None
