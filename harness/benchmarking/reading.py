"""A suite file → a validated `Suite`, or everything that is wrong with it, each at its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.benchmarking.suite import BASELINES, Suite
from harness.errors import ArgumentError
from harness.plugins import suggest
from harness.spec.loading import validate_json
from harness.spec.merging import Merged, find_spec, packaged_specs
from harness.spec.messages import PATTERNS, findings
from harness.spec.models import NAME
from harness.spec.problems import KeyPath, SpecErrors, show
from harness.spec.reading import read_file

FOLDER = "leaderboard"
"""Of the packaged suites, among the packaged specs."""
SHARE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?%")
LONGEST_NAME = 40
# What the suite itself decides, and where.
DECIDED: Mapping[KeyPath, str] = {
    ("privacy", "epsilon"): "is what `budgets` says",
    ("seed",): "is what `seeds` says",
    ("name",): "is made of the suite's name and the cell's",
    ("version",): "is the spec's own",
    ("extends",): "can only stand in a spec",
    ("sweep",): "is not for a suite: its cells are not searched",
}


@dataclass(frozen=True)
class LoadedSuite:
    """A valid suite, and where its values stand.

    Attributes:
        suite: The validated suite.
        path: The file.
        specs: The spec of each data set, by its short name; "" where there is one alone.
        merged: Places of keys and values.
    """

    suite: Suite
    path: Path
    specs: Mapping[str, Path]
    merged: Merged


def find_suite(name: str | Path) -> Path:
    """The file that a user means: a path, or the name of a packaged suite; a local file comes first."""
    packaged = find_spec(Path(FOLDER) / name)
    try:
        return find_spec(name) if Path(name).exists() or not packaged.is_file() else packaged
    except (OSError, ValueError):  # no name that a file can have
        return Path(name)


def load_suite(name: str | Path) -> LoadedSuite:
    """Reads and validates a suite; its specs are found, and not read.

    Raises:
        SpecErrors: It has problems; all of them.
    """
    path = find_suite(name)
    layer = read_file(path, _packaged_suites())
    merged = Merged([layer], str(path), layer.data, list(layer.problems), set(layer.broken))
    suite = _validated(merged) if layer.readable and not merged.problems else None
    specs: dict[str, Path] = {}
    if suite is not None:
        _check_names(suite, merged)
        _check_lists(suite, merged)
        for key, block in [(("set",), suite.set), *((("policies", n), p or {}) for n, p in suite.policies.items())]:
            _check_overrides(key, block, merged)
        specs = _found_specs(suite, path, merged)
    if suite is None or merged.problems:
        raise SpecErrors(sorted(merged.problems, key=lambda p: (p.place.line, p.place.column)))
    return LoadedSuite(suite, path, specs, merged)


def _packaged_suites() -> list[str]:
    try:
        return [path.stem for path in (packaged_specs() / FOLDER).glob("*.yaml")]
    except ArgumentError:
        return []


def _validated(merged: Merged) -> Suite | None:
    data = {key: value for key, value in merged.data.items() if value is not None}
    try:
        suite: Suite = validate_json(Suite, data)
        return suite
    except ValidationError as error:
        for found in findings(error, Suite, data):
            if found.missing:
                merged.add_missing(found.path, found.message)
            else:
                merged.add(found.path, found.message, found.suggestion, at_key=found.unknown)
        return None


# --- what a model can't check ---------------------------------------------------------------------------------


def _check_names(suite: Suite, merged: Merged) -> None:
    for block, names in (("policies", list(suite.policies)), ("specs", list(suite.specs or ()))):
        for name in names:
            if len(name) > LONGEST_NAME or not re.fullmatch(NAME, name):
                message = f"must be a name of at most {LONGEST_NAME} {PATTERNS[NAME]}"
                merged.add((block, name), message, at_key=True)
            elif block == "policies" and name in BASELINES:
                merged.add((block, name), "is the name of a baseline; choose another one", at_key=True)


def _check_lists(suite: Suite, merged: Merged) -> None:
    lists: dict[str, Sequence[Any]] = {
        # What can't be told apart by six digits would be one in every table.
        "budgets": [f"{budget:g}" for budget in suite.budgets],
        "seeds": suite.seeds,
        "baselines": suite.baselines,
    }
    for key, values in lists.items():
        for index, value in enumerate(values):
            if value in values[:index]:
                merged.add((key, index), f"{value} a second time")


def _check_overrides(at: KeyPath, block: Mapping[str, Any], merged: Merged) -> None:
    """What is set is the spec's own affair, but for what the suite decides."""
    for key, value in block.items():
        names = tuple(key.split("."))
        if not all(names) or re.search(r"[=\s]", key):
            merged.add((*at, key), "must be a dotted key of the spec, as train.steps", at_key=True)
            continue
        if names[0] == "noise" and at == ("set",):
            merged.add((*at, key), "belongs into a policy: it is what makes one", at_key=True)
        for below, inner in [(names, value), *inside(names, value)]:
            if below in DECIDED:
                merged.add((*at, key, *below[len(names) :]), DECIDED[below], at_key=True)
            if isinstance(inner, str) and inner.endswith("%"):
                _check_share(inner, below, (*at, key, *below[len(names) :]), merged)


def _check_share(text: str, below: KeyPath, at: KeyPath, merged: Merged) -> None:
    found = SHARE.fullmatch(text)
    if below[0] != "noise":
        merged.add(at, "a share of the budget stands only below noise")
    elif found is None or not 0 < float(found[1]) <= 100:
        merged.add(at, f"must be a share of the budget above 0 and at most 100 %, as 50 %, found {show(text)}")


def inside(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    """All that lies below a value, with its path."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key), inner
        yield from inside((*path, key), inner)


# --- the specs ----------------------------------------------------------------------------------------------


def _found_specs(suite: Suite, path: Path, merged: Merged) -> dict[str, Path]:
    if (suite.spec is None) == (suite.specs is None):
        if suite.spec is None:
            merged.add_missing(("spec",), "is missing: a spec for all cells, or `specs`, one for each data set")
        else:
            merged.add(("specs",), "stands in place of spec; both can't be", at_key=True)
        return {}
    named: dict[str, tuple[KeyPath, str]] = {"": (("spec",), suite.spec)} if suite.spec is not None else {}
    named |= {label: (("specs", label), name) for label, name in (suite.specs or {}).items()}
    found = {}
    for label, (key, name) in named.items():
        at = _find(name, path)
        if at is None:
            near = suggest(
                name, [*_packaged_specs(), *(p.name for p in path.parent.glob("*.y*ml") if p.name != path.name)]
            )
            merged.add(key, f"there is no spec {show(name)} beside the suite, nor among the packaged specs", near)
        else:
            found[label] = at
    return found


def _find(name: str, suite: Path) -> Path | None:
    """Not where the command happens to be typed: a suite means the same everywhere. It is no spec itself."""
    try:
        roots = [suite.parent, packaged_specs()]
    except ArgumentError:
        roots = [suite.parent]
    try:
        tried = [root / end for root in roots for end in (name, f"{name}.yaml")]
        found = (p for p in tried if p.is_file() and p.suffix in (".yaml", ".yml") and not p.samefile(suite))
        return next(found, None)
    except (OSError, ValueError):
        return None


def _packaged_specs() -> list[str]:
    try:
        return [path.stem for path in packaged_specs().glob("*.yaml")]
    except ArgumentError:
        return []
