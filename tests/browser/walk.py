"""A whole walk, from the login over a trace to a deleted conversation, in both languages and on both sizes of screen."""

from __future__ import annotations

import re

import pytest
from conftest import DESKTOP, PHONE, Person, Visit
from playwright.sync_api import Browser, expect

ALL = " ".join(f"w{at}" for at in range(60))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_conversation_from_its_beginning_to_its_end(
    browser: Browser, person: Person, language: str, size: dict[str, int]
) -> None:
    visit = Visit(browser, language, size)
    page = visit.log_in(person)

    visit.begin("guide", "count 60")
    expect(visit.live).to_contain_text("w5")
    page.reload()  # in mid-answer
    expect(visit.live).to_contain_text("w0 w1 w2")
    visit.until_answered(ALL)

    visit.say("count 1000")
    expect(visit.live).to_contain_text("w3")
    visit.click("stop")
    expect(visit.answers.last).to_contain_text(visit.words["stopped"])

    visit.click("edit")
    page.locator(".editor textarea").fill("count 3")
    page.locator(".editor").get_by_role("button", name=visit.words["send"]).click()
    visit.until_answered("w0 w1 w2")
    expect(page.locator(".of-person").last.locator(".versions")).to_contain_text("2/2")
    visit.click("again")
    expect(visit.answers.last.locator(".versions")).to_contain_text("2/2")
    visit.until_answered("w0 w1 w2")

    page.locator(".of-person").last.get_by_role("button", name=visit.words["previous"]).click()
    expect(visit.answers.last).to_contain_text(visit.words["stopped"])
    page.reload()
    expect(visit.answers.last).to_contain_text(visit.words["stopped"])

    visit.menu("rename")
    page.get_by_role("textbox", name=visit.words["title"]).fill("Counting sheep")
    visit.click("save")
    expect(page.get_by_role("heading", name="Counting sheep", level=1)).to_be_visible()

    visit.list_sessions()
    search = page.get_by_role("searchbox", name=visit.words["search"])
    search.fill("sheep")
    expect(page.locator(".session")).to_have_count(1)
    search.fill("nothing like it")
    expect(page.locator(".session")).to_have_count(0)
    search.fill("w59")
    page.locator(".hit a").click()
    expect(visit.page.locator("article", has_text="w59").first).to_be_in_viewport()
    visit.list_sessions()
    search.fill("")
    expect(page.locator(".session")).to_have_count(1)
    page.keyboard.press("Escape")

    follow_the_trace(visit)
    visit.menu("delete")
    page.get_by_role("dialog").get_by_role("button", name=visit.words["delete"], exact=True).click()
    expect(page).to_have_url(re.compile(r"#/$"))
    expect(page.locator(".session")).to_have_count(1)
    (left,) = person.call("GET", "/api/v1/sessions")["data"]
    assert left["title"] == "Counting sheep"
    visit.close()


def follow_the_trace(visit: Visit) -> None:
    """Another conversation, with a model: what its answer was made of, and the same once more with another model."""
    page = visit.page
    page.goto(page.url.partition("#")[0])
    visit.begin("simple_openai_agent", "say Good morning")
    visit.until_answered("Good morning")
    expect(page.locator(".usage")).to_contain_text(f"5 {visit.words['tokens']}")
    visit.click("trace")
    page.get_by_role("button", name="llm default").click()
    expect(page.get_by_role("region", name="llm default")).to_contain_text("say Good morning")
    page.get_by_role("combobox", name=visit.words["model"]).fill("big")
    page.get_by_role("textbox", name=visit.words["prompt"]).fill("say Good evening")
    visit.click("rerun")
    expect(page.locator(".sides mark")).to_have_text(["mor", "eve"])
    visit.click("back")
    expect(page.get_by_role("button", name="llm default")).to_be_visible()
    page.keyboard.press("Escape")
