"""What administrators do on the page."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import PASSWORD, PHONE, URL, Person, Visit, call
from everybody import findings
from playwright.sync_api import Browser, expect

TABS = {"users": "Users", "groups": "Groups", "agents": "Agents", "models": "Models"}
TABS |= {"usage": "Usage", "budgets": "Budgets", "audit": "Log"}


def test_an_administrator_lets_people_in_and_sets_limits(browser: Browser, administrator: Person) -> None:
    visit = Visit(browser)
    page = visit.log_in(administrator)
    page.get_by_role("button", name="Menu:").click()
    page.get_by_role("menuitem", name="Administration").click()
    name = f"new {administrator.name}"
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_role("dialog").locator("code").inner_text()
    page.keyboard.press("Escape")
    expect(page.get_by_role("region", name="Links that were not used yet")).to_contain_text(name)
    come_in(browser, link, name, "a password of my own")
    page.reload()
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

    page.get_by_role("link", name="Users").click()
    row.get_by_role("button", name="New password").click()
    link = page.get_by_role("dialog").locator("code").inner_text()
    page.keyboard.press("Escape")
    come_in(browser, link, name, "another password of my own")
    other = Visit(browser)
    other.log_in(Person(name, ""), password="another password of my own")
    other.close()

    page.get_by_role("link", name="Log", exact=True).click()
    page.get_by_role("combobox", name="Action").select_option("budget.create")
    expect(page.get_by_role("row", name=administrator.name).first).to_contain_text("tokens: 1000")
    page.get_by_role("combobox", name="Action").select_option("invite.create")
    page.get_by_role("combobox", name="Who").select_option(label=administrator.name)
    expect(page.get_by_role("row", name="invite.create")).to_have_count(2)
    visit.close()


def come_in(browser: Browser, link: str, name: str, password: str) -> None:
    """Follow a link that an administrator has made, on a telephone, and find it used up afterwards."""
    visit = Visit(browser, size=PHONE)
    page = visit.page
    page.goto(link)
    expect(page.get_by_role("textbox", name="Name")).to_have_value(name)
    page.locator("[name=password]").fill(password)
    page.locator("[name=again]").fill("something else")
    page.locator("button.primary").click()
    expect(page.get_by_text("This is not the same password.")).to_be_visible()
    assert findings(page) == []
    page.locator("[name=again]").fill(password)
    page.locator("button.primary").click()
    expect(visit.box).to_be_visible()
    assert "invite" not in page.url
    page.goto(link)
    expect(page.get_by_text("This link was used")).to_be_visible()
    visit.expected.add("404")  # of the link that is used up
    visit.close()


def test_somebody_invited_chooses_a_name_that_is_free(browser: Browser, administrator: Person) -> None:
    link = call("POST", "/api/v1/invites", {"role": "user"}, administrator.key)["path"]
    visit = Visit(browser, "zh")
    page = visit.page
    page.goto(f"{URL}{link}")
    for name in (administrator.name, f"free {administrator.name}"):
        page.get_by_role("textbox", name="名称").fill(name)
        for field in ("password", "again"):
            page.locator(f"[name={field}]").fill(PASSWORD)
        page.get_by_role("button", name="创建账户").click()
        if name == administrator.name:
            expect(page.locator(".field .error")).to_be_visible()
    expect(visit.box).to_be_visible()
    visit.expected.add("409")  # of the name that was taken
    visit.close()


def test_usage_is_drawn_by_day_and_model(visit: Visit, administrator: Person) -> None:
    made = call("POST", "/api/v1/sessions", {"agent": {"id": "simple_openai_agent"}}, administrator.key)["id"]
    call("POST", f"/api/v1/sessions/{made}/messages", {"content": "say hello"}, administrator.key)
    page = visit.log_in(administrator)
    page.goto(f"{URL}/#/admin/usage")
    expect(page.get_by_role("img", name=re.compile("The tables have the numbers"))).to_be_visible()
    expect(page.locator(".plot rect").first).to_be_visible()
    expect(page.locator(".plot figcaption")).to_contain_text("fake")
    page.get_by_role("combobox", name="Measure").select_option("cost")
    expect(page.locator(".plot rect").first).to_be_visible()
    assert findings(page) == []


def test_a_list_of_people_is_imported_and_comes_back_with_links(
    browser: Browser, visit: Visit, administrator: Person, tmp_path: Path
) -> None:
    page = visit.log_in(administrator)
    page.goto(f"{URL}/#/admin/users")
    file = tmp_path / "people.csv"
    file.write_text(f"name,role\none {administrator.name},user\ntwo {administrator.name},boss\n")
    page.get_by_label("Import from CSV").set_input_files(file)
    expect(page.locator(".note.error")).to_have_text("Line 3, column role: must be user or admin.")
    visit.expected.add("400")  # of the line that is wrong
    file.write_text(f"name,role\none {administrator.name},user\ntwo {administrator.name}, \n")
    with page.expect_download() as download:
        page.get_by_label("Import from CSV").set_input_files(file)
    header, first, second = Path(download.value.path()).read_text().splitlines()
    assert header == "name,role,link"
    assert first.startswith(f'"one {administrator.name}",user,{URL}/#/invite/')
    expect(page.get_by_role("row", name=f"two {administrator.name}").last).to_be_visible()
    come_in(browser, second.split(",")[2], f"two {administrator.name}", PASSWORD)


def test_every_page_of_the_administration_opens(visit: Visit, administrator: Person) -> None:
    page = visit.log_in(administrator)
    for tab, title in TABS.items():
        page.goto(f"{URL}/#/admin/{tab}")
        expect(page.locator(".tabs [aria-current=page]")).to_have_text(title)
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
