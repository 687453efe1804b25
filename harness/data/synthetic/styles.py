"""How a text looks on the page: case, punctuation, abbreviations."""

from __future__ import annotations

from collections.abc import Callable

_SHORT = (
    ("please", "pls"),
    ("Please", "Pls"),
    (" you ", " u "),
    (" and ", " & "),
    ("because", "bc"),
    ("tomorrow", "tmrw"),
    (" minutes", " min"),
    (" hours", " h"),
    ("before", "b4"),
    (" with ", " w/ "),
    ("something", "sth"),
)


def _short(text: str) -> str:
    for long, short in _SHORT:
        text = text.replace(long, short)
    return text


def _dots(text: str) -> str:
    return text.replace(". ", "... ")


def _bangs(text: str) -> str:
    return text.replace(". ", "!! ")


SURFACES: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "lower": str.lower,
    "dots": _dots,
    "bangs": _bangs,
    "short": _short,
    "shouted": str.upper,
    "slashed": lambda text: text.replace(" ", " / "),
}
ODD_SURFACES = ("shouted", "slashed")
"""How only outliers write."""
