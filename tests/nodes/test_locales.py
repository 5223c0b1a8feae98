"""The translations: every node, input and output in every language, nothing left over, and the server gives them."""

import json
import re

import pytest

from english_locale import LOCALES, english

LANGUAGES = ["en", "ja", "ko", "zh"]
HAN, KANA, HANGUL = r"[\u4e00-\u9fff]", r"[\u3040-\u30ff]", r"[\uac00-\ud7af]"
SCRIPTS = {"zh": HAN, "ja": KANA, "ko": HANGUL}
MESSAGE_SYNTAX = set("{}@|$")
"""What the page's message format gives a meaning to; a name or description with one of these would be cut up."""
VALUES = "auto|default|fp8|euler|lcm|heun|logSNR|RMD|(?:exact|mix|fresh)(?=:)"
KEPT = re.compile(rf"\d+(?:\.\d+)?(?:[x+]\d+)*|\b(?:{VALUES})(?!\w)")
"""What stays as it is in every language: numbers, and values as the widgets show them."""


def locale(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(entry, path=()):
    """Path of keys -> text, for every text of a locale."""
    if isinstance(entry, str):
        return {path: entry}
    found = {}
    for key, value in entry.items():
        found |= texts(value, (*path, key))
    return found


@pytest.fixture(scope="module")
def meant(node_classes):
    return english(node_classes)


def test_there_are_these_languages_and_no_other_file():
    assert sorted(path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*.*")) == [
        f"{language}/nodeDefs.json" for language in LANGUAGES
    ]


def test_english_is_what_the_nodes_say(meant):
    assert locale("en") == meant, "run python tests/english_locale.py, then translate what changed"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_its_texts_and_nothing_is_left_over(meant, language):
    found, wanted = texts(locale(language)), texts(meant)
    assert found.keys() == wanted.keys()
    assert not [path for path, text in found.items() if not text.strip() or text != text.strip()]
    assert not [path for path, text in found.items() if MESSAGE_SYNTAX & set(text)]


@pytest.mark.parametrize("language", SCRIPTS)
def test_sentences_are_in_the_language(language):
    for path, text in texts(locale(language)).items():
        if path[-1] in ("tooltip", "description", "display_name"):
            assert re.search(SCRIPTS[language], text) or (language == "ja" and re.search(HAN, text)), path
        others = [script for name, script in SCRIPTS.items() if name != language and (language, name) != ("ja", "zh")]
        assert not any(re.search(script, text) for script in others), path


@pytest.mark.parametrize("language", SCRIPTS)
def test_nodes_are_called_by_their_translated_names(language):
    english_texts, translated = locale("en"), locale(language)
    names = {entry["display_name"]: translated[node]["display_name"] for node, entry in english_texts.items()}
    mine = texts(translated)
    for path, text in texts(english_texts).items():
        for name, own in names.items():
            assert name not in mine[path], path
            assert name not in text or own in mine[path], (path, own)


@pytest.mark.parametrize("language", SCRIPTS)
def test_numbers_and_values_are_kept(language):
    mine = texts(locale(language))
    for path, text in texts(locale("en")).items():
        if path[-1] in ("tooltip", "description"):
            lost = [word for word in KEPT.findall(text) if word not in mine[path]]
            assert not lost, (path, lost)


def test_the_server_gives_them(server):
    told = server.json("/i18n")
    assert told == {language: {"nodeDefs": locale(language)} for language in LANGUAGES}
