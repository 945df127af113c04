"""What administrators do on the page."""

from __future__ import annotations

from pathlib import Path

from conftest import PASSWORD, URL, Person, Visit, call
from everybody import findings
from playwright.sync_api import Browser, expect

TABS = ("users", "groups", "agents", "models", "usage", "budgets")


def test_an_administrator_lets_people_in_and_sets_limits(browser: Browser, administrator: Person) -> None:
    visit = Visit(browser)
    page = visit.log_in(administrator)
    page.get_by_role("button", name="Menu:").click()
    page.get_by_role("menuitem", name="Administration").click()
    name = f"new {administrator.name}"
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("button", name="Invite").click()
    told = page.get_by_role("dialog").locator("code").inner_text().split("\n")
    assert told[1] == name
    page.keyboard.press("Escape")
    row = page.get_by_role("row", name=name)
    row.get_by_role("button", name="Suspend").click()
    expect(row).to_contain_text("suspended")
    row.get_by_role("button", name="Let in again").click()
    expect(row.get_by_role("button", name="Suspend")).to_be_visible()

    page.get_by_role("link", name="Groups").click()
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("button", name="Create").click()
    group = page.locator("section.panel", has=page.get_by_role("heading", name=name))
    group.get_by_role("combobox", name="Grant an agent").select_option("fake_echo_agent")
    expect(group).to_contain_text("fake_echo_agent")
    group.get_by_role("combobox", name="Add member").select_option(label=name)
    expect(group.get_by_role("button", name=f"Remove: {name}")).to_be_visible()
    made = next(each for each in call("GET", "/api/v1/groups?limit=100")["data"] if each["name"] == name)
    assert made["agents"] == ["fake_echo_agent"]

    page.get_by_role("link", name="Budgets").click()
    page.get_by_role("combobox", name="Name").select_option(label=name)
    page.get_by_role("spinbutton", name="Tokens at most").fill("1000")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("row", name=name)).to_contain_text("0 / 1,000")

    other = Visit(browser)
    other.log_in(Person(name, ""), password=told[2])
    other.close()
    visit.close()


def test_a_list_of_people_is_imported_and_comes_back_with_passwords(
    visit: Visit, administrator: Person, tmp_path: Path
) -> None:
    page = visit.log_in(administrator)
    page.goto(f"{URL}/#/admin/users")
    file = tmp_path / "people.csv"
    file.write_text(f"name,role\none {administrator.name},user\ntwo {administrator.name}\n")
    with page.expect_download() as download:
        page.get_by_label("Import from CSV").set_input_files(file)
    header, first, second = Path(download.value.path()).read_text().splitlines()
    assert header == "name,role,password"
    assert first.startswith(f'"one {administrator.name}",user,')
    expect(page.get_by_role("row", name=f"two {administrator.name}")).to_be_visible()
    visit.page.context.clear_cookies()
    visit.page.goto("about:blank")
    visit.log_in(Person(f"two {administrator.name}", ""), password=second.split(",")[2])


def test_every_page_of_the_administration_opens(visit: Visit, administrator: Person) -> None:
    page = visit.log_in(administrator)
    for tab in TABS:
        page.goto(f"{URL}/#/admin/{tab}")
        expect(page.locator(".tabs [aria-current=page]")).to_have_text(tab.capitalize())
        expect(page.locator("section.panel").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        assert findings(page) == [], tab
    page.goto(f"{URL}/#/admin/agents")
    expect(page.get_by_role("row", name="guide")).to_contain_text("Ready")


def test_a_user_makes_a_key_and_another_password(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    page.goto(f"{URL}/#/settings")
    page.get_by_role("textbox", name="Name").fill("laptop")
    page.get_by_role("button", name="Create").click()
    key = page.get_by_role("dialog").locator("code").inner_text()
    assert call("GET", "/api/v1/auth/users/me", key=key)["name"] == person.name
    page.keyboard.press("Escape")
    expect(page.get_by_role("row", name="laptop")).to_be_visible()
    page.get_by_role("textbox", name="Present password").fill(PASSWORD)
    page.get_by_role("textbox", name="New password").fill("another long password")
    page.get_by_role("button", name="Change").click()
    expect(page.locator("form.card")).to_be_visible()
    visit.log_in(person, password="another long password")


def test_others_do_not_see_the_administration(visit: Visit, person: Person) -> None:
    page = visit.log_in(person)
    page.goto(f"{URL}/#/admin/users")
    expect(page.get_by_role("heading", name="New chat")).to_be_visible()
    page.get_by_role("button", name="Menu:").click()
    expect(page.get_by_role("menuitem", name="Administration")).to_have_count(0)
