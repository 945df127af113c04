"""What an answer can hold, what it may not do, and what people do about it."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import DESKTOP, PHONE, Person, Visit, call
from everybody import findings
from playwright.sync_api import Browser, Route, expect


def test_an_answer_shows_markdown_code_tables_and_math_and_runs_nothing(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "show me")
    answer = visit.answers.last
    expect(answer.locator("h1")).to_have_text("A heading")
    expect(answer.locator("td").last).to_have_text("1")
    expect(answer.locator("code .hljs-keyword").first).to_have_text("def")
    expect(answer.locator(".katex").first).to_be_visible()
    expect(answer.locator(".katex-display")).to_be_visible()
    expect(answer.locator("img, script, iframe")).to_have_count(0)
    expect(answer.get_by_role("link", name="a picture")).to_have_attribute("rel", re.compile("noopener"))
    assert answer.locator("a[href^='javascript']").count() == 0
    expect(answer.locator("summary")).to_have_count(3)
    answer.locator("summary", has_text="Tool: look_up").click()
    expect(answer).to_contain_text('"word": "me"')
    expect(page).to_have_title(re.compile("show me"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_question_is_a_form_that_outlives_a_reload(browser: Browser, person: Person, size: dict[str, int]) -> None:
    visit = Visit(browser, size=size)
    page = visit.log_in(person)
    visit.begin("guide", "ask")
    expect(page.locator("p.asked")).to_be_visible()
    page.reload()
    page.get_by_role("textbox", name="City").fill("Rome")
    page.get_by_role("spinbutton", name="Nights").fill("3")
    page.get_by_role("button", name="Answer", exact=True).click()
    visit.until_answered("3 nights in Rome")
    visit.close()


def test_an_answer_gets_a_thumb_and_a_comment(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    page.get_by_role("button", name="Good", exact=True).click()
    page.get_by_role("button", name="Comment").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("Kind words.")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(visit.answers.last).to_contain_text("Kind words.")
    page.reload()
    expect(page.get_by_role("button", name="Good", exact=True)).to_have_attribute("aria-pressed", "true")


def test_parameters_and_agent_change_in_mid_session_and_become_a_preset(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    page.locator(".agent-card", has_text="guide").click()
    page.get_by_text("Settings of the agent").click()
    page.get_by_role("combobox", name="Tone").select_option(label="dry")
    visit.say("hello")
    visit.until_answered("dry: hello")
    page.get_by_title("Settings of this conversation").click()
    page.get_by_role("combobox", name="Tone").select_option(label="warm")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    visit.say("again")
    visit.until_answered("warm: again")
    page.get_by_title("Settings of this conversation").click()
    page.get_by_role("combobox", name="Tone").select_option(label="dry")
    page.get_by_role("button", name="Save as preset").click()
    page.get_by_role("textbox", name="Name of the preset").fill("Dry guide")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_title("Settings of this conversation").click()
    page.get_by_role("combobox", name="Agent").select_option(label="fake_echo_agent")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    visit.say("echo this")
    visit.until_answered("echo this")
    page.get_by_role("link", name="New chat").click()
    visit.begin("Dry guide", "preset")
    visit.until_answered("dry: preset")


def test_a_wrong_parameter_is_told_at_its_field(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    page.locator(".agent-card", has_text="guide").click()
    page.get_by_text("Settings of the agent").click()
    page.get_by_role("spinbutton", name="Delay").fill("99")
    visit.say("hello")
    expect(page.get_by_role("alert").first).to_contain_text("less than or equal to 2")
    expect(visit.box).to_have_value("hello")
    visit.complaints.clear()  # the browser's own line about the status 400


@pytest.mark.parametrize(
    ("busy", "last"), [("a new message waits", "w59"), ("a new message takes its place", "Stopped")]
)
def test_a_message_beside_an_answer_waits_or_takes_its_place(
    visit: Visit, person: Person, busy: str, last: str
) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    page.get_by_title("Settings of this conversation").click()
    page.get_by_text("More settings").click()
    page.get_by_label("While an answer is on its way").select_option(label=busy)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    visit.say("count 60")
    expect(visit.live).to_contain_text("w3")
    visit.say("second")
    visit.until_answered("warm: second")
    expect(visit.answers.nth(1)).to_contain_text(last)


def test_a_file_goes_along_with_a_message(visit: Visit, person: Person, tmp_path: Path) -> None:
    page = visit.log_in(person)
    page.locator(".agent-card", has_text="fake_echo_agent").click()
    file = tmp_path / "times.md"
    file.write_text("Opens at nine.")
    page.locator("input[type=file]").set_input_files(file)
    expect(page.locator(".composer .files li")).to_contain_text("times.md")
    visit.say("When does it open?")
    expect(visit.answers.last).to_contain_text("Opens at nine.")
    expect(visit.answers.last).to_contain_text("file-")
    said = page.locator("article.of-person")
    expect(said.locator(".said")).to_have_text("When does it open?")
    expect(said.locator(".files")).to_have_text("times.md")
    assert [each["filename"] for each in person.call("GET", "/v1/files")["data"]] == ["times.md"]


def png(width: int, height: int) -> bytes:
    """A picture in three colours, the left side of which lets through what is behind it."""
    row = b"\0" + bytes((220, 60, 40, 90)) * (width // 3) + bytes((40, 120, 200, 255)) * (width - width // 3)
    rest = b"\0" + bytes((250, 200, 60, 255)) * width
    body = zlib.compress(row * (height // 2) + rest * (height - height // 2))
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    framed = (struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


GIVE = """([type, selector, bytes]) => {
    const given = new DataTransfer();
    given.items.add(new File([Uint8Array.from(atob(bytes), (each) => each.charCodeAt(0))], "look.png", { type: "image/png" }));
    const how = { bubbles: true, cancelable: true, clipboardData: given, dataTransfer: given };
    const event = type === "paste" ? new ClipboardEvent(type, how) : new DragEvent(type, how);
    document.querySelector(selector).dispatchEvent(event);
}"""


def pictures_of(person: Person) -> list[list[dict[str, str]]]:
    """The pictures of each message of the person in the newest conversation, in the order they were said."""
    (session, *_) = person.call("GET", "/api/v1/sessions")["data"]
    messages = person.call("GET", f"/api/v1/sessions/{session['id']}/messages")["data"]
    said = [message.get("parts", []) for message in messages if message["role"] == "user"]
    return [[part["image_url"] for part in parts if part["type"] == "image_url"] for parts in said]


@pytest.mark.parametrize(("language", "size"), [("en", DESKTOP), ("zh", PHONE)], ids=["desktop", "phone"])
def test_pictures_go_along_with_a_message(
    browser: Browser, person: Person, language: str, size: dict[str, int], tmp_path: Path
) -> None:
    visit = Visit(browser, language, size)
    page = visit.log_in(person)
    page.locator(".agent-card", has_text="simple_openai_agent").click()
    large = base64.b64encode(png(2000, 1200)).decode()
    page.evaluate(GIVE, ["paste", ".composer textarea", large])
    expect(page.locator(".composer .picture img")).to_have_count(1)
    page.evaluate(GIVE, ["drop", ".composer", large])
    expect(page.locator(".composer .picture img")).to_have_count(2)
    file = tmp_path / "small.png"
    file.write_bytes(png(30, 20))
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_role("img", name="small.png")).to_be_visible()
    assert findings(page) == []
    page.get_by_role("button", name=re.compile("look.png")).first.click()
    expect(page.locator(".composer .picture img")).to_have_count(2)
    expect(visit.box).to_be_focused()
    visit.say("What is this?")
    visit.until_answered("You said: What is this? [image_url, image_url]")
    page.reload()
    pictures = page.locator("article.of-person .pictures img")
    expect(pictures).to_have_count(2)
    sizes = [
        pictures.nth(at).evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
        for at in (0, 1)
    ]
    assert sizes == [[1568, 941], [30, 20]]
    assert [[picture["url"][:21] for picture in each] for each in pictures_of(person)] == [
        ["data:image/png;base64"] * 2
    ]
    assert findings(page) == []

    page.locator("article.of-person .pictures button").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("article.of-person .pictures button").first).to_be_focused()

    visit.click("edit")
    expect(page.locator(".editor textarea")).to_be_focused()  # which sets the cursor
    page.locator(".editor textarea").fill("And this?")
    page.locator(".editor").get_by_role("button", name=visit.words["send"]).click()
    visit.until_answered("You said: And this? [image_url, image_url]")
    visit.click("again")
    expect(visit.answers.last.locator(".versions")).to_contain_text("2/2")
    visit.until_answered("You said: And this? [image_url, image_url]")
    expect(pictures).to_have_count(2)
    before, after = pictures_of(person)
    assert before == after
    visit.close()


def test_a_picture_alone_is_a_message_and_one_from_elsewhere_is_a_link(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    session = person.call("POST", "/api/v1/sessions", {"agent": {"id": "guide"}})
    elsewhere = {"type": "image_url", "image_url": {"url": "https://example.org/picture.png"}}
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    parts = [elsewhere, sound]
    person.call("POST", f"/api/v1/sessions/{session['id']}/messages", {"content": "hello", "parts": parts})
    page.goto(f"{page.url.partition('#')[0]}#/s/{session['id']}")
    expect(page.locator("article.of-person .pictures a")).to_have_attribute("rel", re.compile("noopener"))
    expect(page.locator("article.of-person .files")).to_have_text("Sound")
    expect(page.locator("article.of-person img")).to_have_count(0)
    page.evaluate(GIVE, ["paste", ".composer textarea", base64.b64encode(png(30, 20)).decode()])
    expect(page.locator(".composer .picture img")).to_be_visible()
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("article.of-person")).to_have_count(2)
    expect(page.locator("article.of-person").last.get_by_role("img", name="Picture")).to_be_visible()
    expect(page.locator("article.of-person .said")).to_have_count(1)
    visit.until_answered("warm:")
    visit.say("ask")
    expect(page.locator("form.asks")).to_be_visible()
    page.evaluate(GIVE, ["paste", ".composer textarea", base64.b64encode(png(30, 20)).decode()])
    visit.say("Rome")
    expect(page.get_by_text("An answer to this question is text")).to_be_visible()
    expect(page.locator(".composer .picture img")).to_be_visible()


@contextmanager
def used_up(person: Person) -> Iterator[None]:
    """A budget for the time of the block, for which the server refuses what the person says."""
    id = person.call("GET", "/api/v1/auth/users/me")["id"]
    made = call("POST", "/api/v1/budgets", {"scope": "user", "id": id, "period": "total", "tokens": 0})
    yield
    call("DELETE", f"/api/v1/budgets/{made['id']}")


def test_a_first_message_that_is_refused_stays_with_what_goes_along(
    visit: Visit, person: Person, tmp_path: Path
) -> None:
    visit.expected.add("429")
    page = visit.log_in(person)
    page.locator(".agent-card", has_text="guide").click()
    file = tmp_path / "times.md"
    file.write_text("Opens at nine.")
    page.locator("input[type=file]").set_input_files(file)
    page.evaluate(GIVE, ["paste", ".composer textarea", base64.b64encode(png(30, 20)).decode()])
    along = page.locator(".composer .files li")
    expect(along).to_have_count(2)
    with used_up(person):
        visit.say("When?")
        expect(page.locator(".note.error")).to_be_visible()
    expect(page).to_have_url(re.compile("#/s/"))
    expect(visit.box).to_have_value("When?")
    expect(along).to_have_count(2)
    visit.box.press("Enter")
    expect(visit.answers.last).to_contain_text("Opens at nine.")
    expect(page.locator("article.of-person .said")).to_have_text("When?")
    expect(along).to_have_count(0)
    expect(visit.box).to_have_value("")
    assert [len(each) for each in pictures_of(person)] == [1]


def test_an_edit_that_is_refused_stays_open(visit: Visit, person: Person) -> None:
    visit.expected.add("429")
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    visit.click("edit")
    editor = page.locator(".editor textarea")
    expect(editor).to_be_focused()
    editor.fill("count 3")
    with used_up(person):
        editor.press("Enter")
        expect(page.locator(".note.error")).to_be_visible()
    expect(editor).to_have_value("count 3")
    editor.press("Enter")
    visit.until_answered("w0 w1 w2")
    expect(editor).to_have_count(0)


def test_a_message_is_kept_when_it_is_refused_after_one_has_gone_elsewhere(visit: Visit, person: Person) -> None:
    visit.expected.add("429")
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/messages", hold)
    for text, taken in (("refused", False), ("taken", True)):
        with page.expect_request("**/messages"):
            visit.say(text)
        page.get_by_role("link", name="New chat").click()
        expect(page.get_by_role("heading", name="New chat")).to_be_visible()
        with nullcontext() if taken else used_up(person), page.expect_response("**/messages"):
            held.pop().continue_()
        page.go_back()
        expect(page.get_by_text("warm: hello")).to_be_visible()
        expect(visit.box).to_have_value("" if taken else "refused")
    visit.until_answered("warm: taken")


def own_presets(person: Person) -> list[dict[str, Any]]:
    listed = person.call("GET", "/api/v1/agents?limit=100")["data"]
    return [each for each in listed if each["kind"] == "preset" and each["owner"] == person.name]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_preset_is_changed_shared_and_deleted(browser: Browser, person: Person, size: dict[str, int]) -> None:
    visit = Visit(browser, size=size)
    visit.expected |= {"409", "404"}
    agent = {"id": "guide", "params": {"tone": "dry"}}
    person.call("POST", "/api/v1/agents", {"name": "Dry one", "agent": agent})
    person.call("POST", "/api/v1/agents", {"name": "Other", "agent": agent})
    page = visit.log_in(person)
    page.goto(f"{page.url.partition('#')[0]}#/settings")
    presets = page.get_by_role("region", name="Presets")
    presets.get_by_role("row", name=re.compile("Dry one")).get_by_role("button", name="Edit").click()
    dialog = page.get_by_role("dialog")
    name = dialog.get_by_role("textbox", name="Name of the preset")
    expect(name).to_have_value("Dry one")
    name.fill("Other")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("another of your agents has this name")
    name.fill("Warm one")
    dialog.get_by_role("textbox", name="Description").fill("Speaks kindly.")
    dialog.get_by_role("combobox", name="Tone").select_option(label="warm")
    dialog.get_by_text("More settings").click()
    dialog.get_by_role("spinbutton", name="Temperature").fill("0.3")
    groups = dialog.get_by_role("textbox", name=re.compile("Share with groups"))
    groups.fill("nobody here")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("group")
    groups.fill("everyone")
    assert findings(page) == []
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(presets.get_by_role("row", name=re.compile("Warm one"))).to_contain_text("everyone")
    (changed,) = [each for each in own_presets(person) if each["name"] != "Other"]
    assert (changed["agent"]["params"]["tone"], changed["description"]) == ("warm", "Speaks kindly.")
    assert (changed["session_params"]["temperature"], changed["shared_with"]) == (0.3, ["everyone"])
    page.goto(f"{page.url.partition('#')[0]}#/")
    visit.begin("Warm one", "hello")
    visit.until_answered("warm: hello")
    page.goto(f"{page.url.partition('#')[0]}#/settings")
    for left in (1, 0):
        presets.get_by_role("button", name="Delete").first.click()
        dialog.get_by_role("button", name="Delete").click()
        expect(presets.get_by_role("button", name="Delete")).to_have_count(left)
    assert own_presets(person) == []
    visit.close()


def test_a_conversation_shows_what_it_used(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("simple_openai_agent", "say Good morning")
    visit.until_answered("Good morning")
    expect(page.locator(".usage")).to_contain_text(re.compile(r"^5 tokens · 0\.0000"))


def test_a_failed_answer_says_so_and_can_be_tried_again(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("scripted_agent", "fail: oh")
    expect(page.locator(".failure")).to_contain_text("The answer failed")
    page.reload()
    expect(page.locator(".failure")).to_contain_text("The answer failed")
    page.locator(".failure").get_by_role("button", name="Try again").click()
    expect(page.locator(".failure")).to_be_visible()


def test_an_export_holds_what_was_said(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("guide", "hello")
    visit.until_answered("warm: hello")
    with page.expect_download() as download:
        page.locator("header.head").get_by_role("button", name="More", exact=True).click()
        page.get_by_role("menuitem", name="Export as Markdown").click()
    text = Path(download.value.path()).read_text()
    assert download.value.suggested_filename.endswith("hello.md")  # the model names it, sooner or later
    assert "hello" in text
    assert "warm: hello" in text
