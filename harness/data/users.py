"""Who the users are, and what is publicly declared about each."""

from __future__ import annotations

from collections.abc import Mapping


class Users:
    """Collects distinct users and their public attributes from a stream of records.

    `plan` (from the public columns alone) and the corpus (from the records) both count with this, so that they
    cannot disagree on who is there or on anybody's segment.
    """

    def __init__(self, attributes: tuple[str, ...]) -> None:
        self._names = attributes
        self._numbers: dict[str, int] = {}
        self._values: list[tuple[str | None, ...]] = []
        self._known: dict[tuple[str | None, ...], tuple[str | None, ...]] = {}
        self._differing: dict[int, set[int]] = {}

    def add(self, user: str, attributes: Mapping[str, str | None]) -> int:
        """Notes a record of `user`, and returns the user's number in order of appearance."""
        values = tuple(attributes.get(name) for name in self._names)
        values = self._known.setdefault(values, values)  # few distinct ones, many users
        number = self._numbers.setdefault(user, len(self._numbers))
        if number == len(self._values):
            self._values.append(values)
        elif values != self._values[number]:
            differing = {i for i, (a, b) in enumerate(zip(values, self._values[number], strict=True)) if a != b}
            self._differing.setdefault(number, set()).update(differing)
        return number

    def find(self, user: str) -> int | None:
        """A user's number; None: no record of theirs was noted."""
        return self._numbers.get(user)

    def __len__(self) -> int:
        return len(self._numbers)

    def sorted(self) -> list[tuple[str, int]]:
        """Every user and their number, by name: an order that does not depend on the records'."""
        return sorted(self._numbers.items())

    def attributes(self, number: int) -> dict[str, str | None]:
        """A user's attributes: None where their records differ, so that no record can move them between segments."""
        differing = self._differing.get(number, ())
        values = self._values[number]
        return {name: None if i in differing else values[i] for i, name in enumerate(self._names)}

    def differing(self) -> dict[str, list[str]]:
        """The users whose records differ, each with the columns in which they do. Private."""
        names = {number: user for user, number in self._numbers.items() if number in self._differing}
        return {names[n]: [self._names[i] for i in sorted(columns)] for n, columns in sorted(self._differing.items())}
