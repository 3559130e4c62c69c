"""A page on a free port, and a Chromium without a window that looks at it.

Needs Chromium and its driver, which Debian has as ``chromium chromium-driver``; not to have them is a failure
where BAICHUAN2_TEST_CHROMIUM is 1.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from selenium import webdriver

from running.chat_page import Open, Serve
from running.live_page import LivePage


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server of the talking engine: ``serve(keys={"..."})``."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(LivePage(**settings))


@pytest.fixture
def browser() -> Iterator[Open]:
    """Open a browser of its own: ``browser(language="zh-CN", is_dark=True)``."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        assert os.environ.get("BAICHUAN2_TEST_CHROMIUM") != "1", "chromium and chromedriver are not installed"
        pytest.skip("run: apt-get install chromium chromium-driver")
    with ExitStack() as stack:

        def start(*, language: str = "en-US", is_dark: bool = False) -> webdriver.Chrome:
            options = _options(chromium, language)
            opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
            stack.callback(opened.quit)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
            opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            return opened

        yield start


def _options(chromium: str, language: str) -> webdriver.ChromeOptions:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.add_argument(f"--lang={language}")
    options.add_argument(f"--accept-lang={language}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return options
