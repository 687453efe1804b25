"""Who takes part in a step, and which worker computes whom.

The cohort of a step is drawn once, globally, from the Mechanism and the run's key; every worker draws the same one
and takes its share. A unit (a user, or one of a user's kept examples) is never split across workers, and every worker
runs the same number of micro-batches (empty ones have weight zero), so that sharded workers never fall out of step.

Everything here but the Mechanism is private: cohort sizes, shares, numbers of micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness

_NARROW = 256
"""Rows that examples share may always be so long: attention over them is cheap, and gaps at their ends are few."""
_COSTLY = 4096
"""Attention over rows of this length costs about as much as all else of a token."""
_PAYS = 1.03
"""A row per example needs no mask: sharing has to be worth that."""


class ExampleIndex(Protocol):
    """What cohorts need of a corpus: which examples are whose, and how long they are."""

    @property
    def example_lengths(self) -> NDArray[np.int32]:
        """Tokens per example, shape [examples]."""
        ...

    @property
    def example_targets(self) -> NDArray[np.int32]:
        """Predicted tokens per example, shape [examples]."""
        ...

    def examples_of(self, user_index: int) -> tuple[int, int]:
        """The user's examples, as a half-open range."""
        ...

    def user_id(self, user_index: int) -> str:
        """The user's name."""
        ...


class Members(Protocol):
    """The training users of a group in a fixed order: an array of their numbers, or what answers like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: NDArray[np.int64], /) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Unit:
    """One sampled user, or one sampled example of a user, in one step: the unit that is clipped. Private.

    Attributes:
        user: Index of the user in the corpus. Of sampled examples, several units may be of one user.
        group: Index of the user's privacy group in the Mechanism.
        examples: Corpus indices of the examples that enter the unit's mean gradient; of sampled examples, one.
        targets: Number of predicted tokens over all of them: what the unit's loss is divided by.
    """

    user: int
    group: int
    examples: tuple[int, ...]
    targets: int


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one worker computes together. Private.

    Attributes:
        examples: Corpus indices of examples; those of a unit are neighbours.
        slots: For each example, the place of its unit in `units`; it never falls.
        units: The units that have examples here, in order. The first may have begun in the micro-batch before.
        continues: Whether the last unit has more examples in the next micro-batch.
        lines: For each example, its row. Of examples that share a row, the first comes first.
    """

    examples: tuple[int, ...]
    slots: tuple[int, ...]
    units: tuple[Unit, ...]
    continues: bool
    lines: tuple[int, ...]

    @property
    def packed(self) -> bool:
        """Whether some row holds several examples."""
        return len(set(self.lines)) < len(self.lines)


def draw_cohort(
    mechanism: Mechanism,
    members: Sequence[Members],
    corpus: ExampleIndex,
    randomness: Randomness,
    step: int,
) -> list[Unit]:
    """Draws the cohort of one step: each unit of a group that takes part, independently, with probability q_p.

    There is no maximum size. Sampled units without usable examples contribute nothing, and still count in the
    public denominator.

    Args:
        mechanism: What is sampled, and the sampling rates and the steps of each group.
        members: Per group, the corpus indices of its training users, in a fixed order.
        corpus: Which examples are whose.
        randomness: The run's draws.
        step: 0 ≤ step < mechanism.steps.

    Returns:
        The sampled units, by group and user.
    """
    draw = _sampled_users if mechanism.sampling_unit == "user" else _sampled_examples
    units: list[Unit] = []
    for g in range(len(mechanism.groups)):
        if mechanism.takes_part(g, step):
            drawn = draw(mechanism.groups[g], members[g], corpus, randomness, step)
            units.extend(_units(g, drawn, corpus.example_targets))
    return units


def kept_examples(corpus: ExampleIndex, user: int, at_most: int, randomness: Randomness) -> tuple[int, ...]:
    """The at most G_p examples that a user keeps for the whole run, where examples are sampled. Private.

    A function of the key and of this user's name and records alone: not of the step, of workers, or of other users.
    """
    first, last = corpus.examples_of(user)
    kept = randomness.choose("kept examples", 0, corpus.user_id(user), last - first, at_most)
    return tuple(int(first + k) for k in kept)


def _sampled_users(
    group: GroupMechanism, members: Members, corpus: ExampleIndex, randomness: Randomness, step: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    heads = randomness.bernoulli("cohort", step, group.name, len(members), group.sampling_rate)
    for user in members[heads].tolist():
        first, last = corpus.examples_of(user)
        chosen = randomness.choose("examples", step, str(user), last - first, group.examples_per_user)
        yield user, tuple(int(first + k) for k in chosen)


def _sampled_examples(
    group: GroupMechanism, members: Members, corpus: ExampleIndex, randomness: Randomness, step: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    # A coin for each place (user, j), j < G, whether or not the user has so many: nothing but G and the users decides
    # which coins there are.
    most = group.examples_per_user
    heads = randomness.bernoulli("cohort", step, group.name, len(members) * most, group.sampling_rate)
    drawn = zip(members[heads // most].tolist(), (heads % most).tolist(), strict=True)
    for user, places in itertools.groupby(drawn, key=lambda one: int(one[0])):
        kept = kept_examples(corpus, user, most, randomness)
        yield from ((user, (kept[place],)) for _, place in places if place < len(kept))


def _units(group: int, drawn: Iterable[tuple[int, tuple[int, ...]]], predicted: NDArray[np.int32]) -> Iterator[Unit]:
    for user, examples in drawn:
        targets = sum(int(predicted[e]) for e in examples)
        if targets > 0:
            yield Unit(user, group, examples, targets)


def deal(units: Sequence[Unit], workers: int) -> list[list[Unit]]:
    """Deals whole units to workers, the largest first, each to the worker with the least so far.

    A pure function of its arguments, so that every worker computes the same deal by itself.
    """
    shares: list[list[Unit]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for unit in sorted(units, key=lambda u: (-u.targets, u.user, u.examples)):
        worker = loads.index(min(loads))
        shares[worker].append(unit)
        loads[worker] += unit.targets + len(unit.examples)
    return shares


def micro_batches(
    units: Sequence[Unit], lengths: NDArray[np.int32], budget: int, *, pack: bool = False
) -> list[MicroBatch]:
    """Cuts a worker's share into micro-batches of at most `budget` tokens, padding included (at least one row).

    Units are taken by falling length, so that rows of a micro-batch have similar lengths. A unit whose examples don't
    fit goes on in the next micro-batch; at most one does so at each cut.

    Args:
        units: The worker's share.
        lengths: Tokens of every example of the corpus.
        budget: Tokens of a micro-batch: rows times the longest of them.
        pack: Whether short examples may share a row. They do so in micro-batches that hold more tokens for it.
    """
    rest: list[tuple[int, Unit]] = []
    for unit in sorted(units, key=lambda u: (-max(int(lengths[e]) for e in u.examples), u.user, u.examples)):
        rest.extend((e, unit) for e in sorted(unit.examples, key=lambda e: -int(lengths[e])))
    sizes = [int(lengths[e]) for e, _ in rest]
    longest = list(itertools.accumulate(reversed(sizes), max))[::-1]
    batches: list[MicroBatch] = []
    start = 0
    while start < len(rest):
        rows = _filled(sizes, start, budget, capacity=0)
        if pack:
            widths = {longest[start], max(longest[start], min(_NARROW, budget)), max(longest[start], budget // 2)}
            packed = [
                _filled(sizes, start, budget, capacity=w)
                for w in sorted(widths)
                if w <= 2 * max(longest[start], _NARROW)
            ]
            best = max(packed, key=lambda r: r.worth)
            rows = best if best.worth > _PAYS * rows.worth else rows
        end = start + len(rows.lines)
        continues = end < len(rest) and rest[end][1] is rest[end - 1][1]
        batches.append(_micro_batch(rest[start:end], rows.lines, continues))
        start = end
    return batches


def _filled(sizes: Sequence[int], start: int, budget: int, capacity: int) -> _Rows:
    """Rows with as many examples as the budget allows, and at least one."""
    rows = _Rows(capacity)
    for size in itertools.islice(sizes, start, None):
        if rows.lines and rows.tokens_with(size) > budget:
            break
        rows.add(size)
    return rows


class _Rows:
    """Rows that are filled, each example into the first where it fits; with no capacity, each into its own."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.widest = capacity, 0
        self.filled: list[int] = []
        self.lines: list[int] = []

    @property
    def worth(self) -> float:
        """Tokens that are not padding, for what all of them cost."""
        return sum(self.filled) / (len(self.filled) * self.widest * (1 + self.widest / _COSTLY))

    def _line(self, length: int) -> int:
        if not self.capacity:
            return len(self.filled)
        return next((i for i, n in enumerate(self.filled) if n + length <= self.capacity), len(self.filled))

    def _after(self, length: int, line: int) -> int:
        return length + (self.filled[line] if line < len(self.filled) else 0)

    def tokens_with(self, length: int) -> int:
        """Rows times the longest of them, with one example more."""
        line = self._line(length)
        return max(len(self.filled), line + 1) * max(self.widest, self._after(length, line))

    def add(self, length: int) -> None:
        """Takes the example in."""
        line = self._line(length)
        after = self._after(length, line)
        self.filled[line : line + 1] = [after]
        self.widest = max(self.widest, after)
        self.lines.append(line)


def _micro_batch(examples: Sequence[tuple[int, Unit]], lines: Sequence[int], continues: bool) -> MicroBatch:
    units: list[Unit] = []
    slots: list[int] = []
    for _, unit in examples:
        if not units or units[-1] is not unit:
            units.append(unit)
        slots.append(len(units) - 1)
    return MicroBatch(tuple(e for e, _ in examples), tuple(slots), tuple(units), continues, tuple(lines))
