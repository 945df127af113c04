"""The first administrator's key in its file, and the queue before the password hashers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from app.cli.keys import first_administrator
from app.errors import SettingsError, Unavailable
from app.usecases.passwords import MAX_WAITING, PARALLEL, Passwords

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


@pytest.mark.parametrize("content", ["", "\n", "ck_short\n"])
def test_a_key_file_without_a_key_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "admin.key"
    path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        first_administrator(NOWHERE, tmp_path, None)
    assert str(path) in str(caught.value)
    assert path.read_text() == content


def test_a_key_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            first_administrator(NOWHERE, tmp_path, None)
        assert not (tmp_path / "admin.key").exists()


async def test_only_so_many_passwords_wait_to_be_checked() -> None:
    passwords = Passwords()
    room = PARALLEL + MAX_WAITING
    answers = await asyncio.gather(*(passwords.matches("x", None) for _ in range(room + 5)), return_exceptions=True)
    assert answers.count(False) == room
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert len(refused) == 5
    assert all(error.retry_after for error in refused)
    assert await passwords.matches("x", None) is False
