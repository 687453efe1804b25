"""A grammar: symbols with alternatives, expanded by somebody's choices.

A rule is text with alternatives between ``|``; ``{symbol}`` stands for one of that symbol's alternatives, and
``{=symbol}`` for the same one everywhere in a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_SLOT = re.compile(r"\{(=?)([a-z_]+)\}")
Choose = Callable[[str, int], int]
"""Takes a symbol and its number of alternatives, and picks one."""
_Part = tuple[str, str, bool]  # what stands before a slot; the slot's symbol, or ""; whether it is kept


class Grammar:
    """Compiled rules."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._rules = {name: tuple(_compile(text) for text in rule.split("|")) for name, rule in rules.items()}
        for name, alternatives in self._rules.items():
            for parts in alternatives:
                for _, symbol, _ in parts:
                    if symbol and symbol not in self._rules and not symbol.startswith("my_"):
                        raise ValueError(f"{name} uses {symbol}, which has no rule")

    def expand(self, symbol: str, choose: Choose, given: Mapping[str, str]) -> str:
        """A text.

        Args:
            symbol: Where to begin.
            choose: Picks alternatives.
            given: Values of the symbols that begin with ``my_``, for this text alone.
        """
        return self._expand(symbol, choose, dict(given))

    def _expand(self, symbol: str, choose: Choose, kept: dict[str, str]) -> str:
        alternatives = self._rules[symbol]
        parts = alternatives[choose(symbol, len(alternatives)) if len(alternatives) > 1 else 0]
        text: list[str] = []
        for before, inner, keep in parts:
            text.append(before)
            if not inner:
                continue
            value = kept.get(inner) if keep or inner.startswith("my_") else None
            if value is None:
                value = self._expand(inner, choose, kept)
                if keep:
                    kept[inner] = value
            text.append(value)
        return "".join(text)


def _compile(text: str) -> tuple[_Part, ...]:
    parts: list[_Part] = []
    end = 0
    for slot in _SLOT.finditer(text):
        parts.append((text[end : slot.start()], slot[2], bool(slot[1])))
        end = slot.end()
    return (*parts, (text[end:], "", False))
