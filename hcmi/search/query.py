"""Checks of what is asked for: the query, the number of answers, the tags and the lengths.

`name` is what a message calls a value: the parameter's name, or the flag that the user typed.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hcmi.errors import ConfigError, shown
from hcmi.model import HcmiModel, is_foreign
from hcmi.video import is_text
from hcmi.wording import shortened

# Control characters, halves of characters, private ones. What Python does not know (Cn) may be a newer emoji.
UNREADABLE = ("Cc", "Cs", "Co")
MAX_TOP = 1000
MAX_QUERY_CHARS = 2000


def check_query(query: str) -> str:
    """The query, if it is text that a person can read.

    Raises: ConfigError when it is empty, binary or longer than MAX_QUERY_CHARS.
    """
    if not query.strip():
        raise ConfigError("query: need some words, got none. Say what the video shows.")
    if any(unicodedata.category(char) in UNREADABLE and char not in "\t\n\r" for char in query):
        raise ConfigError(f"query {_short(query)}: need readable text in UTF-8, got control characters or bytes "
                          "that are not text. Say what the video shows in words.")
    if len(query) > MAX_QUERY_CHARS:
        raise ConfigError(f"query {_short(query)}: need at most {MAX_QUERY_CHARS} characters, got {len(query)}. "
                          "Say it in a sentence or two.")
    return query


def check_words(query: str, model: HcmiModel) -> None:
    """Raises: ConfigError when the model knows none of the query's words, or not its language."""
    processor = model.processor
    if is_foreign(processor.tokenizer, processor.clean(query)):
        raise ConfigError(f"query {_short(query)}: need words of a language the model knows, got text its "
                          "tokenizer can only spell byte by byte. Ask in a language that it was trained on.")
    if not processor.known(query)[0]:
        raise ConfigError(f"query {_short(query)}: need a word that a training caption has, got none. "
                          "Ask in the words of the training captions.")


def _short(query: str) -> str:
    return repr(shortened(query, 40))


def check_top(top: int, name: str = "top") -> int:
    """Raises: ConfigError outside 1..MAX_TOP."""
    if not 1 <= top <= MAX_TOP:
        step = "Ask for fewer answers." if top > MAX_TOP else "Ask for 1 or more."
        raise ConfigError(f"{name}: need 1 to {MAX_TOP}, got {top}. {step}")
    return top


def parse_tags(tags: Sequence[str], name: str = "tag") -> dict[str, str]:
    """Tags given as NAME=VALUE. Raises: ConfigError when one is not, or a name has two values."""
    values: dict[str, str] = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not key or not equals:
            raise ConfigError(f"{name}: need NAME=VALUE, got {tag!r}. For example {name} place=beach.")
        if not is_text(tag):
            raise ConfigError(f"{name}: need text in UTF-8, got {shown(tag)}. Correct it.")
        if values.setdefault(key, value) != value:
            raise ConfigError(f"{name}: need one value of {key}, got {values[key]!r} and {value!r}. Leave one out.")
    return values


def check_tags(tags: Mapping[str, Any] | None) -> dict[str, str]:
    """Tags given as a dict; their values become text, as all tags of an index are.

    Raises: ConfigError when they are no dict.
    """
    if tags is not None and not isinstance(tags, Mapping):
        raise ConfigError(f"tags: need a dict such as {{'place': 'beach'}}, got {tags!r}. Give names and values.")
    return {str(name): str(value) for name, value in (tags or {}).items()}


def check_number(value: str | float | None, name: str) -> float | None:
    """The value; None when it is not given. Raises: ConfigError when it is not a finite number from 0."""
    if value is None or value == "":
        return None
    with suppress(ValueError):
        number = float(value)
        if 0 <= number < math.inf:
            return number
    raise ConfigError(f"{name}: need a number from 0, got {value!r}. Correct it or leave it out.")
