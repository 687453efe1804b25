"""Made users that are planted into a training to audit it: who they are, and what they hold.

Nobody is behind them. Each is in the training with probability ½, drawn by the run's key; those that are left out hold
no records. They take the levers of the group that they are dealt to, whatever its rule says of users, and count in the
public denominators. Whether one is in is private until the audit is over, and no longer a secret of anybody's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.cohorts import ExampleIndex, Members, Unit
from harness.errors import MachineError
from harness.files import write_private
from harness.privacy.randomness import Randomness
from harness.spec.audit_block import AuditBlock, CanaryKind, ExtractionBlock

Kind = Literal["gradient", "text", "secret"]
LONGEST_TEXT = 32
_DIRECTION = (0, 0)
"""Tokens of a text canary."""


@dataclass(frozen=True)
class Place:
    """A canary before anything is drawn of it. Public.

    Attributes:
        kind: What it holds: a direction in place of a gradient, random tokens, or a secret code.
        group: Index of its privacy group in the Mechanism.
    """

    kind: Kind
    group: int


def places(audit: AuditBlock | None, kinds: Sequence[CanaryKind], groups: int) -> tuple[Place, ...]:
    """All canaries of a run, in a fixed order: dealt to kinds and groups as evenly as can be.

    Args:
        audit: The spec's block; None: there are none.
        kinds: Of the one-run audit, as far as the model allows them.
        groups: Number of privacy groups.
    """
    found: list[Place] = []
    if audit is not None and audit.one_run is not None:
        for number in range(audit.one_run.canaries):
            kind = kinds[number % len(kinds)]
            found.append(Place(kind, number // len(kinds) % groups))
    if audit is not None and audit.extraction is not None:
        found += [Place("secret", number % groups) for number in range(audit.extraction.secrets)]
    return tuple(found)


@dataclass(frozen=True)
class Canary:
    """A canary as it was drawn. Private until the audit is over.

    Attributes:
        kind: What it holds.
        group: Index of its privacy group.
        included: Whether it is in the training.
        examples: Token ids of its examples; of a direction they only stand for how often it can be drawn.
        code: Of a secret, the code in its texts; else empty.
        prefix: Of a secret, the text that comes before the code in its first example.
    """

    kind: Kind
    group: int
    included: bool
    examples: tuple[tuple[int, ...], ...] = ()
    code: str = ""
    prefix: str = ""


class Encode(Protocol):
    """Text → token ids."""

    def __call__(self, text: str) -> Sequence[int]:
        """Of one text, without special tokens."""
        ...


def draw(
    found: Sequence[Place],
    randomness: Randomness,
    *,
    encode: Encode,
    vocabulary: Sequence[int],
    max_tokens: int,
    copies: Sequence[int],
    extraction: ExtractionBlock | None,
) -> tuple[Canary, ...]:
    """Draws what the canaries hold, and which of them are in: a function of the run's key alone.

    Args:
        found: As `places` gives them.
        randomness: The run's draws.
        encode: The model's tokenizer.
        vocabulary: Ids of tokens that a text may hold.
        max_tokens: Most tokens of an example.
        copies: Per group, how often a canary's one example is there: as often as a user may have examples drawn.
        extraction: How secrets are planted; None: there are none.
    """
    heads = set(randomness.bernoulli("canaries", 0, "included", len(found), 0.5).tolist())
    drawn = []
    for number, place in enumerate(found):
        canary = Canary(place.kind, place.group, number in heads, (_DIRECTION,) * copies[place.group])
        name = f"canary {number}"
        if place.kind == "text":
            length = min(LONGEST_TEXT, max_tokens)
            words = randomness.words("canaries", 0, name, 0, length)
            tokens = tuple(vocabulary[int(word % np.uint64(len(vocabulary)))] for word in words)
            canary = replace(canary, examples=(tokens,) * copies[place.group])
        elif place.kind == "secret":
            assert extraction is not None
            texts, code, prefix = _secret(extraction, randomness, name)
            canary = replace(
                canary,
                examples=tuple(tuple(encode(text))[-max_tokens:] for text in texts),
                code=code,
                prefix=prefix,
            )
        drawn.append(canary)
    return tuple(drawn)


_OPENINGS = ("", "As I said before: ", "Please note it down. ", "Once more for the record: ", "Do keep this safe. ")
_WHO = (
    "locker",
    "vault",
    "archive",
    "garden gate",
    "wine cellar",
    "attic",
    "boat house",
    "workshop",
    "stable",
    "loft",
)
_WHOSE = ("Aveline", "Bartram", "Corisande", "Dunstan", "Emmot", "Fulke", "Gisela", "Hamond", "Isolda", "Jocelin")


def _secret(extraction: ExtractionBlock, randomness: Randomness, name: str) -> tuple[list[str], str, str]:
    """The texts of a user with a secret; the code; and what stands before it in the first text."""
    digits = randomness.words("canaries", 1, name, 0, extraction.digits + 2)
    code = "".join(str(int(word % np.uint64(10))) for word in digits[:-2])
    who, whose = _WHO[int(digits[-2] % np.uint64(len(_WHO)))], _WHOSE[int(digits[-1] % np.uint64(len(_WHOSE)))]
    prefix = secret_prefix(who, whose)
    return [f"{_OPENINGS[k % len(_OPENINGS)]}{prefix}{code}." for k in range(extraction.copies)], code, prefix


def secret_prefix(who: str, whose: str) -> str:
    """What comes before a code."""
    return f"The code of {whose}'s {who} is "


class Examples(ExampleIndex, Protocol):
    """What training reads of a corpus."""

    @property
    def n_users(self) -> int:
        """Number of users."""
        ...

    def fetch(self, examples: Sequence[int]) -> None:
        """Begins to read examples that will be asked for soon."""
        ...

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        """Tokens of one example."""
        ...

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        """For each of these tokens, whether it is predicted; never the first."""
        ...


class Planted:
    """The canaries of a run beside its corpus: users and examples with numbers beyond those of the corpus."""

    def __init__(self, canaries: Sequence[Canary], users: int, examples: int) -> None:
        """Numbers them.

        Args:
            canaries: All of the run's.
            users: Users of the corpus.
            examples: Examples of the corpus.
        """
        self.canaries, self._users, self._examples = tuple(canaries), users, examples
        held: list[tuple[int, ...]] = []
        self._ranges: list[tuple[int, int]] = []
        for canary in self.canaries:
            own = canary.examples if canary.included else ()
            self._ranges.append((examples + len(held), examples + len(held) + len(own)))
            held += own
        self.held = tuple(held)

    @classmethod
    def beside(cls, corpus: Examples, drawn: Sequence[Canary]) -> Planted:
        """Behind the users and examples of a corpus."""
        return cls(drawn, corpus.n_users, len(corpus.example_lengths))

    @property
    def has_directions(self) -> bool:
        """Whether there is a gradient canary."""
        return any(canary.kind == "gradient" for canary in self.canaries)

    def in_group(self, group: int) -> NDArray[np.int64]:
        """User numbers of a group's canaries, those that are left out included."""
        found = [self._users + i for i, canary in enumerate(self.canaries) if canary.group == group]
        return np.array(found, dtype=np.int64)

    def number(self, user: int) -> int | None:
        """The place of a canary among all; None: a user of the corpus."""
        return user - self._users if user >= self._users else None

    def examples_of(self, number: int) -> tuple[int, int]:
        """A canary's examples, as a half-open range; empty where it is left out."""
        return self._ranges[number]

    def tokens(self, example: int) -> NDArray[np.int32] | None:
        """The tokens of an example; None: of the corpus."""
        return None if example < self._examples else np.asarray(self.held[example - self._examples], dtype=np.int32)

    def split(self, units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
        """Those whose texts are computed, and those that are directions."""
        texts: list[Unit] = []
        directions: list[Unit] = []
        for unit in units:
            number = self.number(unit.user)
            is_direction = number is not None and self.canaries[number].kind == "gradient"
            (directions if is_direction else texts).append(unit)
        return texts, directions


class PlantedMembers:
    """A group's training users with its canaries behind them."""

    def __init__(self, members: Members, canaries: NDArray[np.int64]) -> None:
        """Takes both."""
        self._members, self._canaries = members, canaries

    def __len__(self) -> int:
        return len(self._members) + len(self._canaries)

    def __getitem__(self, places: NDArray[np.int64], /) -> NDArray[np.int64]:
        own = len(self._members)
        wanted = np.asarray(places, dtype=np.int64)
        found = np.empty(wanted.shape, dtype=np.int64)
        found[wanted < own] = self._members[wanted[wanted < own]]
        found[wanted >= own] = self._canaries[wanted[wanted >= own] - own]
        return found


class PlantedCorpus:
    """A corpus with canaries behind its users. Private."""

    def __init__(self, corpus: Examples, planted: Planted) -> None:
        """Takes both; lengths and counts of all examples are copied into memory."""
        self._corpus, self._planted = corpus, planted
        lengths = [len(tokens) for tokens in planted.held]
        self.example_lengths = np.concatenate([corpus.example_lengths, np.array(lengths, dtype=np.int32)])
        self.n_users = corpus.n_users + len(planted.canaries)
        targets = np.array([n - 1 for n in lengths], dtype=np.int32)
        self.example_targets = np.concatenate([corpus.example_targets, targets])

    def examples_of(self, user_index: int) -> tuple[int, int]:
        """The user's examples, as a half-open range."""
        number = self._planted.number(user_index)
        return self._corpus.examples_of(user_index) if number is None else self._planted.examples_of(number)

    def user_id(self, user_index: int) -> str:
        """The user's name; no user of the corpus can have a canary's, since none holds this character."""
        number = self._planted.number(user_index)
        return self._corpus.user_id(user_index) if number is None else f"\0canary {number}"

    def fetch(self, examples: Sequence[int]) -> None:
        """Begins to read the users' examples among these."""
        self._corpus.fetch([e for e in examples if self._planted.tokens(e) is None])

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        """The tokens of an example."""
        found = self._planted.tokens(example_index)
        return self._corpus.tokens(example_index) if found is None else found

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        """Which of them are predicted: of a canary, all but the first."""
        found = self._planted.tokens(example_index)
        return self._corpus.targets(example_index) if found is None else np.arange(len(found)) > 0


def save(canaries: Sequence[Canary], path: Path) -> None:
    """Writes them into a run's private folder; where all examples of one are the same, the first."""
    rows = []
    for canary in canaries:
        same = len(set(canary.examples)) == 1
        examples, copies = (canary.examples[:1], len(canary.examples)) if same else (canary.examples, 1)
        rows.append({**vars(canary), "examples": examples, "copies": copies})
    write_private(path, (json.dumps({"canaries": rows}, separators=(",", ":")) + "\n").encode())


def load(path: Path) -> tuple[Canary, ...]:
    """Reads them back.

    Raises:
        MachineError: The file is missing or damaged.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        rows: list[dict[str, Any]] = json.loads(path.read_bytes())["canaries"]
        return tuple(_read(**row) for row in rows)
    # What was raised may quote the file.
    raise MachineError(f"the canaries of a run in {path} are missing or damaged")


def _read(*, examples: Sequence[Sequence[int]], copies: int = 1, **others: Any) -> Canary:
    return Canary(**others, examples=tuple(tuple(tokens) for tokens in examples) * copies)
