"""The page for those who use a keyboard, a screen reader, an input method, the dark, or very long conversations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import DESKTOP, PASSWORD, PHONE, SECONDS, URL, Person, Visit
from playwright.sync_api import Browser, Locator, Page, Route, expect

AXE = Path(os.environ["AXE"]).read_text()


def until(condition: Callable[[], bool]) -> None:
    """Wait for it: the page's policy lets Playwright's own `wait_for_function` evaluate nothing."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def findings(page: Page) -> list[str]:
    """What axe finds serious."""
    page.wait_for_timeout(300)  # transitions end
    page.evaluate(AXE)
    found: list[dict[str, Any]] = page.evaluate("axe.run().then(found => found.violations)")
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:300]} {each['nodes'][0].get('failureSummary', '')[:300]}"
        for each in serious
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(browser: Browser, person: Person, size: dict[str, int], scheme: str) -> None:
    visit = Visit(browser, size=size, color_scheme=scheme, reduced_motion="reduce")
    visit.page.goto(URL)
    expect(visit.page.locator("form.card")).to_be_visible()
    assert findings(visit.page) == []
    page = visit.log_in(person)
    assert findings(page) == []
    visit.begin("guide", "show me")
    expect(visit.answers.last.locator(".katex-display")).to_be_visible()
    assert findings(page) == []
    visit.say("ask")
    expect(page.locator("form.asks")).to_be_visible()
    assert findings(page) == []
    page.get_by_title("Settings of this conversation").click()
    assert findings(page) == []
    page.keyboard.press("Escape")
    page.goto(f"{URL}/#/settings")
    expect(page.get_by_role("heading", name="Password")).to_be_visible()
    assert findings(page) == []
    visit.close()


def test_a_keyboard_is_enough(visit: Visit, person: Person) -> None:
    page = visit.page
    page.goto(URL)
    expect(page.locator("[name=username]")).to_be_focused()
    page.keyboard.type(person.name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(visit.box).to_be_focused()
    for _ in range(40):
        if page.evaluate("document.activeElement.type") == "radio":
            break
        page.keyboard.press("Shift+Tab")
    while "guide" not in page.evaluate("document.activeElement.closest('label').textContent"):
        page.keyboard.press("ArrowDown")
    visit.box.focus()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    visit.until_answered("warm: hello")
    expect(visit.box).to_be_focused()
    page.locator("header.head").get_by_role("button", name="More", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("menuitem", name="Archive")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("header.head").get_by_role("button", name="More", exact=True)).to_be_focused()


def test_a_screen_reader_is_told_of_the_answer(visit: Visit, person: Person) -> None:
    visit.log_in(person)
    visit.begin("guide", "hello")
    expect(visit.page.locator("#announced")).to_have_text("Answer: warm: hello")


def composing(box: Locator, key: str) -> None:
    """The key as it comes while an input method has its list open, in the ways in which browsers tell that."""
    for fields in ({"isComposing": True}, {"keyCode": 229}):
        box.dispatch_event("keydown", {"key": key, "bubbles": True, "cancelable": True, **fields})


def test_enter_that_chooses_a_word_of_an_input_method_sends_nothing(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.box.fill("你好")
    composing(visit.box, "Enter")
    page.wait_for_timeout(300)
    expect(visit.box).to_have_value("你好")
    assert person.call("GET", "/api/v1/sessions")["data"] == []


def test_escape_that_closes_the_list_of_an_input_method_stops_and_drops_nothing(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "count 30")
    expect(visit.live).to_contain_text("w3")
    composing(visit.box, "Escape")
    visit.until_answered(" ".join(f"w{at}" for at in range(30)))
    visit.click("edit")
    editor = page.locator(".editor textarea")
    expect(editor).to_be_focused()
    editor.fill("你好")
    composing(editor, "Escape")
    page.wait_for_timeout(300)
    expect(editor).to_have_value("你好")
    editor.press("Escape")
    expect(editor).to_have_count(0)


def test_escape_of_an_input_method_leaves_the_list_of_conversations_open(browser: Browser, person: Person) -> None:
    visit = Visit(browser, size=PHONE)
    page = visit.log_in(person)
    visit.list_sessions()
    composing(page.get_by_role("searchbox"), "Escape")
    page.wait_for_timeout(300)
    expect(page.locator(".frame.with-sidebar")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".frame.with-sidebar")).to_have_count(0)
    visit.close()


def test_a_long_conversation_is_shown_from_its_end_and_only_in_part(visit: Visit, person: Person) -> None:
    made = person.call("POST", "/v1/conversations", {"metadata": {}})
    for begin in range(0, 600, 20):
        said = [
            {"role": "user" if at % 2 == 0 else "assistant", "content": f"number {at:04} " + "word " * (at % 90)}
            for at in range(begin, begin + 20)
        ]
        person.call("POST", f"/v1/conversations/{made['id']}/items", {"items": said})
    page = visit.log_in(person)
    page.locator(".session a").click()
    expect(page.get_by_text("number 0599")).to_be_in_viewport()
    until(lambda: page.evaluate("document.querySelector('.list').scrollHeight") > 40_000)
    assert page.locator("article").count() < 60
    before = page.get_by_text("number 0599").bounding_box()
    page.wait_for_timeout(500)
    assert page.get_by_text("number 0599").bounding_box() == before, "what comes above moves nothing"
    page.evaluate("document.querySelector('.list').scrollTop = 0")
    expect(page.get_by_text("number 0000")).to_be_in_viewport()
    page.get_by_role("button", name="To the latest message").click()
    expect(page.get_by_text("number 0599")).to_be_in_viewport()


def test_the_login_outlives_its_token_and_ends_for_good(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    cookies = {each["name"]: each for each in visit.context.cookies()}
    assert cookies["chattable"]["httpOnly"]
    assert cookies["chattable"]["sameSite"] == "Strict"
    token = cookies["chattable"]["value"]
    page.get_by_role("button", name="Menu:").click()
    page.get_by_role("menuitem", name="Log out").click()
    expect(page.locator("form.card")).to_be_visible()
    assert not [each for each in visit.context.cookies() if each["value"] == token]


def test_nothing_of_one_user_is_left_to_the_next_in_the_same_tab(
    visit: Visit, person: Person, administrator: Person
) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    visit.box.fill("a secret of here")
    page.get_by_role("link", name="New chat").click()
    visit.box.fill("a secret")
    page.get_by_role("searchbox").fill("nothing like it")
    page.get_by_role("button", name="Archived", exact=True).click()
    page.get_by_role("button", name="Menu:").click()
    page.get_by_role("menuitem", name="Log out").click()
    expect(page.locator("form.card")).to_be_visible()
    assert page.evaluate("Object.keys(sessionStorage)") == []
    for each in (administrator, person):
        visit.identify(each)
        expect(visit.box).to_have_value("")
        expect(page.get_by_role("searchbox")).to_have_value("")
        expect(page.locator(".sidebar [aria-pressed]")).to_have_attribute("aria-pressed", "false")
        expect(page.locator("#announced")).to_have_text("")
        expect(page.locator(".session")).to_have_count(1 if each is person else 0)
        page.get_by_role("button", name="Menu:").click()
        page.get_by_role("menuitem", name="Log out").click()


@pytest.mark.parametrize("returns", [True, False], ids=["the same", "another"])
def test_a_login_that_is_over_keeps_what_was_written_for_who_wrote_it(
    visit: Visit, person: Person, administrator: Person, returns: bool
) -> None:
    person.call("PATCH", f"/api/v1/sessions/{begun(person)}", {"title": "A plan"})
    page = visit.log_in(person)
    visit.box.fill("a secret")
    page.goto(f"{URL}/#/settings")
    page.get_by_role("textbox", name="Name").fill("laptop")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("dialog").locator("code")).to_be_visible()
    visit.context.clear_cookies()
    page.goto(f"{URL}/#/s/{begun(person)}")  # which asks the server
    expect(page.locator("form.card")).to_be_visible()
    page.goto(f"{URL}/#/")
    page.route("**/api/v1/sessions?*", lambda route: route.abort())  # what was there before would stay
    visit.identify(person if returns else administrator)
    expect(visit.box).to_have_value("a secret" if returns else "")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_text("A plan")).to_have_count(0)
    assert page.evaluate("Object.keys(sessionStorage).length") == (1 if returns else 0)
    visit.expected.add("ERR_FAILED")  # of the list that was cut off


def test_a_message_is_kept_when_the_login_ends_with_it(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    visit.context.clear_cookies()
    visit.say("said too late")
    expect(page.locator("form.card")).to_be_visible()
    visit.identify(person)
    expect(visit.box).to_have_value("said too late")


def begun(person: Person) -> str:
    """A new conversation."""
    return str(person.call("POST", "/api/v1/sessions", {"agent": {"id": "guide"}})["id"])


def test_a_login_that_is_over_is_renewed_without_a_word(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    before = {each["name"]: each["value"] for each in visit.context.cookies()}
    refused = []

    def once(route: Route) -> None:
        refused.append(route.request.url)
        route.fulfill(status=401, json={"code": "not_authenticated", "detail": "over"})

    page.route("**/api/v1/sessions?*", once, times=1)
    page.reload()
    expect(page.get_by_text("No conversations yet")).to_be_visible()
    after = {each["name"]: each["value"] for each in visit.context.cookies()}
    assert refused
    assert after["chattable"] != before["chattable"]
    assert after["chattable_mark"] != before["chattable_mark"]


def test_an_answer_goes_on_after_the_connection_was_lost(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "count 60")
    expect(visit.live).to_contain_text("w5")
    broken = []

    def cut(route: Route) -> None:
        broken.append(route.request.headers.get("last-event-id"))
        route.abort()

    page.route("**/events", cut)
    page.goto("about:blank")
    page.go_back()
    expect(visit.live).to_contain_text("The connection was lost")
    page.unroute("**/events")
    visit.until_answered(" ".join(f"w{at}" for at in range(60)))
    assert broken
    visit.complaints.clear()  # the browser's own lines about what was cut


def test_a_key_is_enough_to_log_in(visit: Visit, person: Person) -> None:
    page = visit.page
    page.goto(URL)
    page.get_by_role("button", name="Log in with an API key").click()
    page.locator("[name=key]").fill("ck_wrong")
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.locator("[name=key]").fill(person.key)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(visit.box).to_be_visible()
    page.reload()
    expect(visit.box).to_be_visible()
