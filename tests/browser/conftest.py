"""A real Chromium on the page of a running server; see tests/e2e/test_page.py, which starts both."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

URL = os.environ["CHATTABLE_URL"]
KEY = os.environ["CHATTABLE_KEY"]
PASSWORD = "correct horse battery"
SECONDS = 20
DESKTOP = {"width": 1280, "height": 820}
PHONE = {"width": 390, "height": 780}
WORDS = {
    "en": {
        "ask": "Write a message",
        "log in": "Log in",
        "new": "New chat",
        "stop": "Stop",
        "stopped": "Stopped",
        "edit": "Edit the message",
        "send": "Send",
        "again": "Answer again",
        "previous": "Previous version",
        "rename": "Rename",
        "title": "Title",
        "save": "Save",
        "search": "Search sessions and messages",
        "delete": "Delete",
        "more": "More",
        "menu": "Conversations",
        "trace": "Trace",
        "model": "With another model",
        "prompt": "With another last message",
        "rerun": "Do it again",
        "back": "Back",
        "tokens": "tokens",
    },
    "zh": {
        "ask": "输入消息",
        "log in": "登录",
        "new": "新会话",
        "stop": "停止",
        "stopped": "已停止",
        "edit": "编辑消息",
        "send": "发送",
        "again": "重新回答",
        "previous": "上一版",
        "rename": "重命名",
        "title": "标题",
        "save": "保存",
        "search": "搜索会话和消息",
        "delete": "删除",
        "more": "更多",
        "menu": "会话",
        "trace": "轨迹",
        "model": "换一个模型",
        "prompt": "换最后一条消息",
        "rerun": "重做",
        "back": "返回",
        "tokens": "token",
    },
}


def call(method: str, path: str, body: Any = None, key: str = KEY) -> Any:
    """What the server answers to a program."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{URL}{path}", data, headers, method=method)  # noqa: S310 - http
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - http
        text = answer.read()
    return json.loads(text) if text else None


@dataclass
class Person:
    """Somebody with an account, a password and a key."""

    name: str
    key: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return call(method, path, body, self.key)


@pytest.fixture
def person() -> Person:
    """A new user."""
    return made("user")


@pytest.fixture
def administrator() -> Person:
    """A new administrator."""
    return made("admin")


def made(role: str) -> Person:
    name = f"{role}-{uuid4().hex[:8]}"
    user = call("POST", "/api/v1/users", {"name": name, "role": role, "password": PASSWORD})
    return Person(name, call("POST", f"/api/v1/users/{user['id']}/keys", {"name": "test"})["key"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A browser window on the page, which may complain of nothing but a login that is not there."""

    def __init__(
        self, browser: Browser, language: str = "en", size: dict[str, int] | None = None, **options: Any
    ) -> None:
        self.words = WORDS[language]
        self.is_narrow = size == PHONE
        self.context = browser.new_context(
            viewport=size or DESKTOP, locale={"zh": "zh-CN"}.get(language, "en-GB"), **options
        )
        self.context.set_default_timeout(SECONDS * 1000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.expected = {"401"}
        """Statuses of refusals that belong to the visit, of which a browser complains when it likes."""
        self.elsewhere: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on(
            "request",
            lambda asked: (
                asked.url.startswith(("http", "ws"))
                and not asked.url.startswith(URL)
                and self.elsewhere.append(asked.url)
            ),
        )

    def log_in(self, person: Person, password: str = PASSWORD) -> Page:
        self.page.goto(URL)
        return self.identify(person, password)

    def identify(self, person: Person, password: str = PASSWORD) -> Page:
        """Fill in the login that is shown, in a page that may know things from before."""
        self.page.locator("[name=username]").fill(person.name)
        self.page.locator("[name=password]").fill(password)
        self.page.get_by_role("button", name=self.words["log in"], exact=True).click()
        expect(self.box).to_be_visible()
        return self.page

    @property
    def box(self) -> Any:
        """Where messages are written."""
        return self.page.get_by_role("textbox", name=self.words["ask"])

    @property
    def answers(self) -> Any:
        return self.page.locator("article.of-agent:not(.live)")

    @property
    def live(self) -> Any:
        return self.page.locator("article.live")

    def begin(self, agent: str, text: str) -> None:
        self.page.locator(".agent-card", has_text=agent).click()
        self.say(text)

    def say(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def until_answered(self, text: str) -> None:
        """Wait until the last answer is complete, and says this and nothing else."""
        expect(self.answers.last.locator(".text")).to_have_text(text, timeout=SECONDS * 1000)
        expect(self.live).to_have_count(0)

    def click(self, word: str) -> None:
        self.page.get_by_role("button", name=self.words[word], exact=True).last.click()

    def menu(self, word: str) -> None:
        """Choose from the menu of the open conversation."""
        self.page.locator("header.head").get_by_role("button", name=self.words["more"], exact=True).click()
        self.page.get_by_role("menuitem", name=self.words[word]).click()

    def list_sessions(self) -> None:
        if self.is_narrow:
            self.page.locator("header.head").get_by_role("button", name=self.words["menu"], exact=True).click()

    def close(self) -> None:
        self.context.close()
        unexpected = [each for each in self.complaints if not any(status in each for status in self.expected)]
        assert not unexpected, unexpected
        assert not self.elsewhere, "something was loaded from elsewhere"


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """The page in English, on a desk."""
    opened = Visit(browser)
    yield opened
    opened.close()
