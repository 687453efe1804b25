"""Every value of a sweep's space, tried: the spec is loaded with it, before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.plugins import PluginError
from harness.spec.conditions import NOTHING, Space, holds, inside, is_one_of, ordered, owner, same
from harness.spec.draft import Draft
from harness.spec.merging import SPACE
from harness.spec.overriding import flow, override
from harness.spec.plugin_blocks import REGISTRIES
from harness.spec.problems import KeyPath, Problem, show
from harness.spec.sweep_block import PriorBlock

_WITHIN = 0.6180339887
_Said = tuple[str, str]


@dataclass(frozen=True)
class Attempt:
    """What became of a spec with other values.

    Attributes:
        problems: All of them.
        resolved: The resolved spec; None where there are problems.
        private: Whether it promises anything.
    """

    problems: tuple[Problem, ...]
    resolved: dict[str, Any] | None
    private: bool


Retry = Callable[[Sequence[str]], Attempt]


def try_values(draft: Draft, space: Space, base: Mapping[str, Any], reference: Attempt, retry: Retry) -> None:
    """Loads the spec with every single value of the space, and adds what is then wrong to the draft.

    A value is wrong if no spec loads with it: neither with what its conditions ask for alone, nor as part of a whole
    candidate, in which every other key has its first value.

    Args:
        draft: Is told what is wrong.
        space: The keys to try; their conditions are sound.
        base: The spec's own values, by dotted key.
        reference: The spec as it stands; what is wrong with it anyhow is no fault of a value.
        retry: Loads the spec with further overrides.
    """
    tries = _Tries(draft, space, base, reference, retry)
    for key in space:
        tries.try_key(key)
    tries.report_clashes()


@dataclass
class _Tries:
    draft: Draft
    space: Space
    base: Mapping[str, Any]
    reference: Attempt
    retry: Retry
    seen: dict[tuple[str, ...], Attempt] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)
    """Keys some of whose values are wrong by themselves."""
    clashes: dict[tuple[str, str], list[tuple[Any, Problem]]] = field(default_factory=dict)
    """(key, another) → values of `another` that don't go with `key`, and why."""

    @cached_property
    def known(self) -> set[_Said]:
        """What is wrong with the spec anyhow."""
        return {(p.key, p.message) for p in self.reference.problems}

    def try_key(self, key: str) -> None:
        """Tries every value of a key."""
        prior = self.space[key]
        wanted = self.demands(key)
        if wanted is None:
            self.faulty.add(key)
            message = "its conditions contradict each other: no candidate would have this key"
            self.draft.merged.add((*SPACE, key, "when"), message, at_key=True)
            return
        if prior.law in ("uniform", "loguniform") and self.needs_whole(key, prior, wanted):
            self.faulty.add(key)
            self.draft.merged.add((*SPACE, key, prior.law), "needs whole numbers; use int", at_key=True)
            return
        found = [(where, problem) for where, value in _values(prior) for problem in self.wrong(key, value, wanted)]
        if wanted:  # what is wrong with those is said of them
            before = {(p.key, p.message) for p in self.tried(wanted)[0]}
            found = [(where, p) for where, p in found if (p.key, p.message) not in before]
        if found:
            self.faulty.add(key)
        self.report(key, prior, found)

    def needs_whole(self, key: str, prior: PriorBlock, wanted: dict[str, Any]) -> bool:
        """Whether a number between the ends is refused since it is not whole."""
        found = self.wrong(key, _between(prior), wanted)
        return any(p.key == key and "whole number" in p.message for p in found)

    def wrong(self, key: str, value: Any, wanted: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with a value of a key, whatever the other keys are."""
        alone, attempt = self.tried({**wanted, key: value})
        if not (alone or key.endswith(".type") or (isinstance(value, dict) and "type" in value)):
            return self.unprotected(key, value, attempt)
        others, whole = self.tried(self.candidate(key, value, wanted))
        if not alone:
            self.note_clashes(key, value, others)
            return self.unprotected(key, value, attempt)
        both = {(p.key, p.message) for p in others}
        if found := [p for p in alone if (p.key, p.message) in both]:
            return found
        if all(owner(p.key, self.space) not in (None, key) for p in others):  # if at all, other keys are wrong
            return self.unprotected(key, value, whole)
        return alone

    def tried(self, values: Mapping[str, Any]) -> tuple[list[Problem], Attempt]:
        """The problems that the spec has with these values, and not without."""
        overrides = ("sweep=null", *(override(k, v) for k, v in values.items()))
        if overrides not in self.seen:
            self.seen[overrides] = self.retry(overrides)
        attempt = self.seen[overrides]
        return [p for p in attempt.problems if (p.key, p.message) not in self.known], attempt

    def unprotected(self, key: str, value: Any, attempt: Attempt) -> list[Problem]:
        """A search keeps a budget: a value that promises nothing has no place in it."""
        if attempt.private or not self.reference.private:
            return []
        return [Problem(self.draft.merged.place_of_key(SPACE), key, "promises nothing, and a search keeps a budget")]

    def demands(self, key: str) -> dict[str, Any] | None:
        """The values that a key's conditions ask of others, the first of those allowed; None if they contradict."""
        wanted: dict[str, Any] = {}
        todo = [key]
        while todo:
            for name, allowed in self.space[todo.pop(0)].conditions.items():
                above = owner(name, self.space)
                held = name if above is None else above
                if held in wanted:
                    if not is_one_of(inside(wanted[held], name, held), allowed):
                        return None
                elif above is not None:
                    wanted[above] = _first_with(self.space[above], name, above, allowed)
                    todo.append(above)
                elif not is_one_of(self.base.get(name, NOTHING), allowed):
                    wanted[name] = allowed[0]
        return wanted

    def candidate(self, key: str, value: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """A whole candidate with this value: every other key that it then has takes its first value."""
        drawn = {**wanted, key: value}
        base = {**self.base, **wanted}
        for other in ordered(self.space):
            if other not in drawn and holds(self.space[other], drawn, self.space, base):
                drawn[other] = _first(self.space[other])
        return drawn

    def note_clashes(self, key: str, value: Any, problems: list[Problem]) -> None:
        """Keys of the space that a candidate with this value has, and should not have."""
        for problem in problems:
            other = owner(problem.key, self.space)
            if other is not None and other != key:
                self.clashes.setdefault((other, key), []).append((value, problem))

    def report_clashes(self) -> None:
        """Says of a key where it does not belong, unless it is wrong by itself."""
        for (key, other), found in self.clashes.items():
            if key in self.faulty:
                continue
            value, problem = found[0]
            message = f"with {other}: {show(value)}, {_below(problem, key)}"
            fine = [v for _, v in _values(self.space[other]) if not any(same(v, bad) for bad, _ in found)]
            if fine and other not in self.space[key].conditions:
                message += f"; add `when: {{{other}: {flow(fine[0] if len(fine) == 1 else fine)}}}`"
            self.draft.merged.add((*SPACE, key), message, problem.suggestion, at_key=True)

    def report(self, key: str, prior: PriorBlock, found: list[tuple[KeyPath, Problem]]) -> None:
        """Adds the problems of a key's values at their places; what all of them have, or the key itself, once."""
        tries = len(list(_values(prior)))
        for where, problem in found:
            said = (problem.key, problem.message)
            times = sum((p.key, p.message) == said for _, p in found)
            path: KeyPath = (*SPACE, key)
            near = problem.suggestion
            if problem.message.startswith("unknown "):
                if near is not None and "." not in near:
                    near = ".".join([*problem.key.split(".")[:-1], near])
                self.draft.merged.add(path, _below(problem, key) + self.hint(key, prior), near, at_key=True)
            elif times == tries > 1:
                self.draft.merged.add(path, _below(problem, key), near, at_key=True)
            else:
                self.draft.merged.add((*path, *where), _below(problem, key), near)

    def hint(self, key: str, prior: PriorBlock) -> str:
        """Which plugins have a parameter that the spec's own has not."""
        block, _, name = key.partition(".")
        registry = REGISTRIES.get((block,))
        if registry is None or f"{block}.type" in prior.conditions:
            return ""
        parameter = name.split(".")[0]
        have = []
        for plugin in sorted(registry.targets()):
            try:
                if parameter in registry.get(plugin).Parameters.model_fields:
                    have.append(plugin)
            except PluginError:
                continue
        if not have:
            return ""
        which = have[0] if len(have) == 1 else f"[{', '.join(have)}]"
        verb = "has" if len(have) == 1 else "have"
        return f"; {', '.join(have)} {verb} it: add `when: {{{block}.type: {which}}}`"


def _below(problem: Problem, key: str) -> str:
    """A problem of the loaded spec, as said of the key that was tried."""
    if problem.key == key:
        return problem.message
    if problem.key.startswith(f"{key}."):
        return f"{problem.key[len(key) + 1 :]}: {problem.message}"
    return f"with it, {problem.key}: {problem.message}" if problem.key else problem.message


def _values(prior: PriorBlock) -> Iterator[tuple[KeyPath, Any]]:
    """What is tried of a prior, and where each value stands: all values, or both ends."""
    if prior.values is not None:
        yield from (((prior.law, index), value) for index, value in enumerate(prior.values))
        return
    assert prior.ends is not None
    for index, end in enumerate(prior.ends):
        yield (prior.law, index), end if prior.law == "int" else float(end)


def _first(prior: PriorBlock) -> Any:
    return next(value for _, value in _values(prior))


def _first_with(prior: PriorBlock, name: str, above: str, allowed: tuple[Any, ...]) -> Any:
    """The first value of a prior of `above` that gives `name` a value that is allowed, the first allowed one first."""
    if prior.values is None:
        return allowed[0]
    return next(v for one in allowed for v in prior.values if is_one_of(inside(v, name, above), (one,)))


def _between(prior: PriorBlock) -> float:
    """A number within a range that is not whole by design."""
    assert prior.ends is not None
    low, high = prior.ends
    if prior.law == "loguniform":
        return math.exp(math.log(low) + _WITHIN * (math.log(high) - math.log(low)))
    return low + _WITHIN * (high - low)
