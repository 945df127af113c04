"""What a run did, and the same once more."""

from __future__ import annotations

from conftest import Person, Visit
from everybody import findings
from playwright.sync_api import expect


def test_a_step_shows_its_values_and_is_done_again_with_another_model(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    visit.begin("simple_openai_agent", "say Good morning")
    visit.until_answered("Good morning")
    page.get_by_role("button", name="Trace").click()
    page.get_by_role("button", name="llm default").click()
    expect(page.get_by_role("region", name="llm default")).to_contain_text("say Good morning")
    assert findings(page) == []
    page.get_by_role("combobox", name="With another model").fill("big")
    page.get_by_role("textbox", name="With another last message").fill("say Good evening")
    page.get_by_role("button", name="Do it again").click()
    expect(page.locator(".sides mark")).to_have_text(["mor", "eve"])
    assert findings(page) == []
    page.get_by_role("button", name="Back").click()
    expect(page.get_by_role("button", name="llm default")).to_be_visible()
