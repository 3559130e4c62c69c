import re

import pytest

from baichuan2_tpu.server.page.texts import TEXTS, choose_language, read_part


def test_both_languages_say_the_same_things() -> None:
    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert english.keys() == chinese.keys()
    for name, text in english.items():
        assert ("{0}" in text) is ("{0}" in chinese[name]), name


def test_every_text_the_browser_asks_for_exists() -> None:
    asked = set(re.findall(r'\btext\("(\w+)"', read_part("page.js")))
    assert len(asked) > 10
    assert asked <= TEXTS["en"].keys()


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("fr, en;q=0.5, zh;q=0.4", "en"),
        ("fr", "en"),
        ("", "en"),
        ("ZH", "zh"),
    ],
)
def test_the_first_language_that_is_known_is_chosen(accepted: str, language: str) -> None:
    assert choose_language(accepted) == language
