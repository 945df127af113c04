"""What people bring along, conversations from elsewhere; and what conversations are called, and where they are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import PHONE, Person, Visit
from everybody import findings
from playwright.sync_api import Browser, expect


def chat(number: int) -> dict[str, object]:
    """A conversation as ChatGPT exports it."""

    def node(parent: str | None, role: str, text: str) -> dict[str, object]:
        content = {"content_type": "text", "parts": [text]}
        return {"parent": parent, "message": {"author": {"role": role}, "content": content}}

    mapping = {
        "a": node(None, "user", f"question {number}"),
        "b": node("a", "assistant", f"answer {number}"),
        "c": node("a", "assistant", f"better answer {number}"),
    }
    about = {"title": f"Chat {number}", "create_time": 1_700_000_000 + number, "current_node": "c"}
    return {"id": f"chat-{number}", "mapping": mapping, **about}


def test_conversations_of_another_platform_are_imported_once(visit: Visit, person: Person, tmp_path: Path) -> None:
    page = visit.log_in(person)
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([*(chat(number) for number in range(60)), {"mapping": 5}]))
    page.get_by_role("button", name="Import conversations").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("File").set_input_files(file)
    dialog.get_by_label("Who goes on with them").select_option("guide")
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog).to_contain_text("60 conversations were imported; 0 were here already.")
    expect(dialog).to_contain_text("[60].mapping")
    assert findings(page) == []
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog).to_contain_text("0 conversations were imported; 60 were here already.")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Chat 59", exact=True).click()
    expect(visit.answers.last).to_contain_text("better answer 59")
    expect(visit.answers.last.locator(".versions")).to_contain_text("2/2")
    visit.say("count 3")
    visit.until_answered("w0 w1 w2")


def test_a_file_that_is_none_is_said_in_the_language_of_the_page(
    browser: Browser, person: Person, tmp_path: Path
) -> None:
    visit = Visit(browser, "zh", PHONE)
    page = visit.log_in(person)
    file = tmp_path / "export.zip"
    file.write_bytes(b"PK\x03\x04")
    visit.list_sessions()
    page.get_by_role("button", name="导入会话").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("文件").set_input_files(file)
    dialog.get_by_role("button", name="导入", exact=True).click()
    expect(dialog.locator(".error")).to_have_text(re.compile("conversations.json"))
    visit.close()


def test_a_conversation_is_named_and_renamed_in_the_list_as_it_goes(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "count 60")
    expect(page.locator(".session a")).to_have_text("count 60")
    expect(visit.live).to_contain_text("w5")
    expect(page.locator(".session a")).to_have_text(
        "You said: Person: count 60", timeout=20_000
    )  # by the model `title`
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("^You said: Person"))


def test_an_archived_conversation_is_shown_when_it_is_asked_for(visit: Visit, person: Person) -> None:
    person.call("POST", "/api/v1/sessions", {"agent": {"id": "guide"}, "title": "Put away"})
    page = visit.log_in(person)
    row = page.locator(".session", has_text="Put away")
    row.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name="Archive").click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Archived").click()
    row.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name="Take from the archive").click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Archived").click()
    expect(row).to_have_count(1)
