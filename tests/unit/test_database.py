"""Which failures pass."""

from __future__ import annotations

import pytest

from app.store.database import is_passing


@pytest.mark.parametrize(
    ("errors", "passes"),
    [
        ([ConnectionError()], True),
        ([ConnectionError(), TimeoutError()], True),
        ([ConnectionError(), ValueError()], False),
    ],
)
def test_failures_of_tasks_pass_together(errors: list[Exception], passes: bool) -> None:
    assert is_passing(ExceptionGroup("tasks", errors)) is passes
