"""The page as somebody uses it: what to press, and what to see."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from running.live_page import LivePage

__all__ = ["PATIENCE_S", "ChatPage", "Open", "Serve"]

Serve = Callable[..., LivePage]
"""Starts a server, with ``LivePage``'s settings."""

Open = Callable[..., webdriver.Chrome]
"""Opens a browser with a ``language`` and ``is_dark``."""

PATIENCE_S = 40  # a shared machine stalls

NOT_YET = [StaleElementReferenceException, ElementNotInteractableException, ElementClickInterceptedException]
"""What an element answers while the page is still being laid out: a person would press again."""

_Value = TypeVar("_Value")


class ChatPage:
    """A page in a browser's tab."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        self.url = url
        self.open()

    def open(self) -> None:
        """Open the page, or open it again, and wait until it can be used."""
        self.browser.get(self.url)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the page has its language and its settings."""
        self.wait(lambda: self.browser.execute_script("return document.documentElement.lang !== ''"))
        self.wait(lambda: self.find("#box textarea"))
        self.wait(lambda: self._texts("#language")[:1] not in ([], [""]))

    def wait(self, see: Callable[[], _Value]) -> _Value:
        """Look until there is something."""
        waiting = WebDriverWait(self.browser, PATIENCE_S, 0.05, NOT_YET)
        return cast("_Value", waiting.until(lambda _: see()))

    def find(self, selector: str) -> WebElement:
        """Return the first such element, when there is one."""
        return self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))[0]

    def text(self, selector: str) -> str:
        """Return the text of the first such element, when there is one that has a text."""
        return self.wait(lambda: next(filter(None, self._texts(selector)), ""))

    def value(self, selector: str) -> str:
        """Return what stands in the first such field, or nothing while there is none."""
        script = "return document.querySelector(arguments[0])?.value ?? ''"
        return cast("str", self.browser.execute_script(script, selector))

    def write(self, selector: str, *keys: str) -> None:
        """Type into the first such field; again, if it was replaced before it had a key."""

        def type_keys() -> bool:
            self.find(selector).send_keys(*keys)
            return True

        self.wait(type_keys)

    def click(self, selector: str) -> None:
        """Press the first such element; again, if it was replaced meanwhile."""

        def press() -> bool:
            self.find(selector).click()
            return True

        self.wait(press)

    def ask(self, question: str) -> None:
        """Write a question and send it."""
        self.wait(lambda: not self.is_answering)
        self.write("#box textarea", question, Keys.ENTER)
        self.wait(lambda: question in self.messages("user"))

    def answer(self, question: str) -> str:
        """Ask and return the whole answer."""
        answers = len(self.messages("bot"))
        self.ask(question)
        # On a slow machine the question is shown some time before its answer begins.
        self.wait(lambda: len(self.messages("bot")) > answers)
        self.wait_until_over()
        return self.messages("bot")[-1]

    def wait_until_over(self) -> None:
        self.wait(lambda: not self.is_answering)

    @property
    def is_answering(self) -> bool:
        return bool(self.browser.find_elements(By.CSS_SELECTOR, "#box .stop-button"))

    def stop(self) -> None:
        self.click("#box .stop-button")

    def messages(self, role: str) -> list[str]:
        """Return the messages of "user" or "bot" as they are shown."""
        return self._texts(f"#chat .message.{role}")

    @property
    def hint(self) -> str:
        """What stands in the empty field for questions."""
        script = "return document.querySelector('#box textarea')?.placeholder ?? ''"
        return cast("str", self.browser.execute_script(script))

    @property
    def note(self) -> str:
        """The line below the conversation."""
        return self.text("#note .note")

    @property
    def error(self) -> str:
        """The error below the conversation; it is waited for."""
        return self.text("#note [role=alert]")

    @property
    def conversations(self) -> list[str]:
        """The titles of all conversations."""
        return self._texts("#conversations .open")

    def _texts(self, selector: str) -> list[str]:
        # In one step: elements that are read one after the other may be gone meanwhile.
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText.trim())"
        return cast("list[str]", self.browser.execute_script(script, selector))

    def start_new(self) -> None:
        self.press("New conversation")
        self.wait(lambda: not self.messages("user"))

    def choose(self, title: str) -> None:
        """Open another conversation."""
        self.click(f'#conversations .open[title="{title}"]')
        self.wait(lambda: title in self.messages("user"))

    def press(self, label: str) -> None:
        """Press the button with this text."""
        buttons = f"//button[normalize-space()='{label}']"

        def press() -> bool:
            found = self.browser.find_elements(By.XPATH, buttons)
            for button in found[:1]:
                button.click()
            return bool(found)

        self.wait(press)

    @property
    def is_dark(self) -> bool:
        return bool(self.browser.execute_script("return document.body.classList.contains('dark')"))

    def photograph(self, name: str) -> None:
        """Keep a picture of it, in the folder that BAICHUAN2_TEST_SCREENSHOTS names."""
        folder = os.environ.get("BAICHUAN2_TEST_SCREENSHOTS")
        if folder:
            self.browser.save_screenshot(str(Path(folder, f"page-{name}.png")))

    def requests(self) -> dict[str, str]:
        """Return every URL the browser wanted since it was last asked, and why it was blocked, if it was."""
        urls: dict[str, str] = {}
        blocked: dict[str, str] = {}
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            values = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                urls[values["requestId"]] = values["request"]["url"]
            elif message["method"] == "Network.loadingFailed":
                blocked[values["requestId"]] = values.get("blockedReason", "")
        return {url: blocked.get(request, "") for request, url in urls.items()}
