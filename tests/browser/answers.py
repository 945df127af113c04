"""What an answer can hold, what it may not do, and what people do about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import DESKTOP, PHONE, Person, Visit
from playwright.sync_api import Browser, expect


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
