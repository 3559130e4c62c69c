"""The web page in a real browser: conversations, errors, keys, languages, and whom it calls."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from baichuan2_tpu.server.page.texts import TEXTS
from doubles.talking_engine import COUNT, LONG_COUNT
from running.chat_page import PATIENCE_S, ChatPage, Open, Serve

# Gradio asks pandas for what pandas is giving up.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

_FIGURES = re.compile(r"first token \d+\.\d\d s · \d+\.\d tokens/s · \d+ tokens")


def test_an_answer_is_seen_to_grow_and_ends_with_its_figures(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.ask("count")
    some = page.wait(lambda: next(iter(page.messages("bot")), ""))
    more = page.wait(lambda: next((text for text in page.messages("bot") if len(text) > len(some)), ""))
    assert COUNT.startswith(more)
    assert page.is_answering
    page.wait_until_over()
    page.wait(lambda: page.messages("bot") == [COUNT])
    assert _FIGURES.fullmatch(page.note)


def test_stop_ends_an_answer_at_once_and_keeps_it(serve: Serve, browser: Open) -> None:
    server = serve()
    page = ChatPage(browser(), server.url)
    page.ask("count on")
    page.wait(lambda: page.messages("bot"))
    page.stop()
    page.wait_until_over()
    (answer,) = page.messages("bot")
    assert LONG_COUNT.startswith(answer)
    assert len(answer) < len(LONG_COUNT)
    assert page.note.endswith("stopped")
    assert server.scheduler.load().running == 0
    assert page.answer("hello") == "Hello! How can I help?"


def test_conversations_grow_side_by_side_and_never_meet(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.ask("count on")
    page.wait(lambda: page.messages("bot"))
    page.start_new()
    assert page.answer("hello") == "Hello! How can I help?"
    page.wait(lambda: page.messages("user") == ["hello"])
    page.choose("count on")
    assert page.is_answering
    page.stop()
    page.wait_until_over()
    assert LONG_COUNT.startswith(page.messages("bot")[0])
    page.choose("hello")
    page.wait(lambda: page.messages("bot") == ["Hello! How can I help?"])


def test_a_page_that_is_loaded_again_has_its_history(serve: Serve, browser: Open) -> None:
    server = serve()
    page = ChatPage(browser(), server.url)
    page.answer("hello")
    page.start_new()
    page.answer("this is the second")
    page.open()
    page.wait(lambda: page.messages("bot") == ["You said: this is the second"])
    page.wait(lambda: page.conversations == ["this is the second", "hello"])
    page.choose("hello")
    page.wait(lambda: page.messages("bot") == ["Hello! How can I help?"])


def test_an_answer_nobody_waits_for_is_stopped_and_what_was_said_is_kept(serve: Serve, browser: Open) -> None:
    server = serve()
    page = ChatPage(browser(), server.url)
    page.ask("count on")
    page.wait(lambda: len(page.messages("bot")[0]) > 300 if page.messages("bot") else False)
    page.open()
    page.wait(lambda: server.scheduler.load().running == 0)
    (answer,) = page.wait(lambda: page.messages("bot"))
    assert LONG_COUNT.startswith(answer)
    assert not page.is_answering


def test_two_tabs_do_not_overwrite_each_others_conversations(serve: Serve, browser: Open) -> None:
    server, chrome = serve(), browser()
    page = ChatPage(chrome, server.url)
    first = chrome.current_window_handle
    chrome.switch_to.new_window("tab")
    page.open()
    page.ask("count")
    second = chrome.current_window_handle
    chrome.switch_to.window(first)
    page.answer("hello")
    page.wait(lambda: set(page.conversations) == {"hello", "count"})
    chrome.switch_to.window(second)
    page.wait_until_over()
    page.open()
    page.wait(lambda: page.messages("bot") == [COUNT])
    assert set(page.conversations) == {"hello", "count"}


def test_people_who_ask_at_once_see_their_own_answers(serve: Serve, browser: Open) -> None:
    server = serve()
    pages = [ChatPage(browser(), server.url) for _ in range(2)]
    for page, question in zip(pages, ("of one person", "of another"), strict=True):
        page.ask(question)
    for page, question in zip(pages, ("of one person", "of another"), strict=True):
        page.wait_until_over()
        assert page.messages("user") == [question]
        assert page.messages("bot") == [f"You said: {question}"]
        assert page.conversations == [question]


def test_a_question_can_be_edited_and_an_answer_tried_again(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.answer("hello")
    page.answer("the second question")
    page.press("Try again")
    page.wait(lambda: page.is_answering)
    page.wait_until_over()
    page.wait(lambda: page.messages("bot") == ["Hello! How can I help?", "You said: the second question"])

    page.click("#chat button[title='Edit']")
    page.write("#chat .message.user textarea", Keys.CONTROL, "a", Keys.NULL, "something else")
    page.click("#chat button[title='Submit']")
    page.wait(lambda: page.messages("bot") == ["You said: something else"])
    page.wait(lambda: page.messages("user") == ["something else"])


def test_a_conversation_can_be_deleted(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.answer("hello")
    page.click("#conversations .delete")
    page.browser.switch_to.alert.accept()
    page.wait(lambda: not page.messages("user"))
    page.open()
    page.wait(lambda: page.conversations == [])


def test_a_fault_is_shown_as_an_error_and_not_as_an_answer(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.ask("break")
    assert page.error == TEXTS["en"]["error_engine_failed"]
    page.wait(lambda: page.messages("bot") == [])
    page.wait(lambda: page.messages("user") == ["break"])
    assert page.answer("hello") == "Hello! How can I help?"
    assert _FIGURES.fullmatch(page.note)


def test_a_fault_is_told_in_the_language_of_the_page(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(language="zh-CN"), serve().url)
    page.ask("break")
    assert page.error == TEXTS["zh"]["error_engine_failed"]


def test_a_long_prompt_shows_how_much_of_it_is_read(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve(step_s=1).url)
    page.ask("x" * 500)  # five steps
    page.wait(lambda: re.fullmatch(r"reading [2-9]\d %", page.note))
    page.click("#language")
    page.wait(lambda: re.fullmatch(r"正在读取 [2-9]\d %", page.note))


def test_a_prompt_that_does_not_fit_is_refused_with_what_to_do(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.browser.execute_script(
        "const box = arguments[0]; box.value = 'x'.repeat(9000); box.dispatchEvent(new Event('input'))",
        page.find("#box textarea"),
    )
    page.click("#box .submit-button")
    # It told the reader of the page about options of the command line.
    assert page.error == TEXTS["en"]["error_context_length_exceeded"]


def test_a_server_that_is_gone_is_told(serve: Serve, browser: Open) -> None:
    server = serve()
    page = ChatPage(browser(), server.url)
    page.ask("count on")
    page.wait(lambda: page.messages("bot"))
    server.stop()
    assert "try again" in page.error
    assert not page.is_answering
    page.wait(lambda: page.messages("user") == ["count on"])


def test_a_server_that_was_gone_before_the_question_is_told_too(serve: Serve, browser: Open) -> None:
    server = serve()
    page = ChatPage(browser(), server.url)
    page.answer("hello")
    server.stop()
    page.ask("are you there?")
    page.wait(lambda: "Connection to the server was lost." in page.text(".toast-body.error"))
    page.wait(lambda: page.messages("bot") == ["Hello! How can I help?"])


def test_settings_reach_the_model_and_are_kept(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve(max_tokens=10).url)
    assert page.answer("hello") == "Hello! How"
    assert "cut off at the maximum length" in page.note
    page.click("#settings button")
    length = "input[aria-label='Maximum answer length (tokens)']"
    page.write(length, Keys.CONTROL, "a", Keys.NULL, "5")
    assert page.answer("hello") == "Hello"
    page.open()
    page.click("#settings button")
    page.wait(lambda: page.value(length) == "5")
    assert page.answer("something") == "You s"


BLOCKED = """for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}"""


def test_the_page_works_where_the_browser_blocks_storage(serve: Serve, browser: Open) -> None:
    # The page stayed empty: what it shows was kept in storage first.
    opened = browser()
    opened.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BLOCKED})
    page = ChatPage(opened, serve().url)
    assert page.answer("hello") == "Hello! How can I help?"
    page.open()
    assert page.answer("again") == "You said: again"


def test_the_page_works_on_damaged_settings_and_conversations(serve: Serve, browser: Open) -> None:
    # A stored setting that was no JSON, or a conversation without texts, left the page empty.
    page = ChatPage(browser(), serve().url)
    damage = {
        "baichuan2.settings": "{no",
        "baichuan2.language": "klingon",
        "baichuan2.theme": "{}",
        "baichuan2.conversation.x": '{"id": "x", "messages": [null, {"role": "user"}]}',
    }
    for settings in ("{no", "[1, 2]", '["a", null, {}, 4, 5, 6, 7, 8]'):
        for key, value in (damage | {"baichuan2.settings": settings}).items():
            page.browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, value)
        page.open()
        assert page.answer("hello") == "Hello! How can I help?"
        page.start_new()


def test_the_system_prompt_belongs_to_its_conversation(serve: Serve, browser: Open) -> None:
    page = ChatPage(browser(), serve().url)
    page.click("#settings button")
    page.write("#system textarea", "Be brief.")
    assert page.answer("what is your system prompt?") == "Be brief."
    page.start_new()
    page.wait(lambda: page.value("#system textarea") == "")
    assert page.answer("hello") == "Hello! How can I help?"
    page.choose("what is your system prompt?")
    page.wait(lambda: page.value("#system textarea") == "Be brief.")


def sign_in(chrome: webdriver.Chrome, key: str, *, answer: str) -> None:
    """Send a key and wait for the page that follows: it has the element ``answer``."""
    chrome.find_element(By.ID, "key").send_keys(key, Keys.ENTER)
    # While one page replaces another, Chrome answers with errors that have no class of their own.
    WebDriverWait(chrome, PATIENCE_S, ignored_exceptions=[WebDriverException]).until(
        lambda _: chrome.execute_script("return document.querySelector(arguments[0]) !== null", answer)
    )


def test_the_wrong_key_is_refused_and_the_right_one_remembered(serve: Serve, browser: Open) -> None:
    server, chrome = serve(keys={"open-sesame"}), browser()
    for key in ("sesame", "OPEN-SESAME"):
        chrome.get(server.url)
        sign_in(chrome, key, answer="[role=alert]")
        assert chrome.find_element(By.CSS_SELECTOR, "[role=alert]").text == "The API key is incorrect."
        assert not chrome.find_elements(By.TAG_NAME, "gradio-app")
    sign_in(chrome, "open-sesame", answer="gradio-app")
    page = ChatPage(chrome, server.url)
    assert page.answer("hello") == "Hello! How can I help?"
    page.open()
    page.wait(lambda: page.conversations == ["hello"])
    assert page.answer("hello") == "Hello! How can I help?"


def test_the_page_calls_nobody_but_its_server(serve: Serve, browser: Open) -> None:
    server = serve()
    page = ChatPage(browser(), server.url)
    page.answer("code")
    page.wait(lambda: page.browser.find_elements(By.CSS_SELECTOR, "#chat code .token.keyword"))
    page.answer("picture")
    page.wait(lambda: page.browser.find_elements(By.CSS_SELECTOR, "#chat .katex"))
    own = urlsplit(server.url).netloc
    requests = page.requests()
    assert server.url in requests
    foreign = {
        url: reason
        for url, reason in requests.items()
        if urlsplit(url).scheme in {"http", "https", "ws", "wss"} and urlsplit(url).netloc != own
    }
    assert set(foreign.values()) <= {"csp"}, foreign
    assert set(foreign) <= {"http://example.com/picture.png"}


def test_in_a_narrow_window_the_conversations_do_not_cover_the_page(serve: Serve, browser: Open) -> None:
    chrome = browser()
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    page = ChatPage(chrome, serve().url)
    assert page.answer("hello") == "Hello! How can I help?"
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.photograph("narrow")


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_the_page_follows_the_browser_and_can_be_switched(
    serve: Serve, browser: Open, language: str, is_dark: bool
) -> None:
    page = ChatPage(browser(language=language, is_dark=is_dark), serve().url)
    texts = {"en-US": ("Ask a question", "New conversation"), "zh-CN": ("请输入问题", "新对话")}
    hint, new = texts.pop(language)
    page.wait(lambda: page.hint == hint)
    page.wait(lambda: page.is_dark is is_dark)
    page.answer("你好")
    page.answer("code")
    page.photograph(f"{language}-{'dark' if is_dark else 'light'}")
    page.press(new)

    page.click("#language")
    page.click("#theme")
    ((other_hint, _),) = texts.values()
    page.wait(lambda: page.hint == other_hint)
    page.open()
    page.wait(lambda: page.hint == other_hint)
    page.wait(lambda: page.is_dark is not is_dark)
