"""Problems of a sweep: what can be searched, under which conditions, and by what the best trial is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from harness.plugins import NoisePolicy, suggest
from harness.spec.checks import known_groups
from harness.spec.conditions import NOTHING, Space, by_key, inside, is_one_of, ordered, owner
from harness.spec.draft import Draft
from harness.spec.merging import SPACE
from harness.spec.places import only_place
from harness.spec.problems import KeyPath, show
from harness.spec.sweep_block import PriorBlock, SweepBlock
from harness.spec.sweep_tries import Retry, try_values

MOST_KEYS = 50
MOST_IN_ALL = 2000
ROOTS = ("clipping", "noise", "segmentation", "sensitivity", "groups", "sampling", "train")
LOSS = "eval/loss"
_REASONS: Mapping[str, str] = {
    "privacy": "the budget is what the search must keep",
    "data": "trials share one data set",
    "model": "trials share one base model; of it, only model.adapter can be",
    "compute": "it changes speed only, so there is nothing to find",
    "evaluation": "trials are compared by one and the same evaluation",
    "report": "it says what is written at the end",
    "audit": "finished runs are audited",
    "sweep": "a search can't search itself",
    "seed": "all trials share it; the best of several seeds is luck",
    "name": "it only names the runs",
    "version": "it is that of the spec's format",
    "extends": "it can only stand in a file",
}


def check_sweep(draft: Draft, retry: Retry) -> None:
    """Adds every problem of the sweep to the draft.

    Args:
        draft: Of a spec that has a sweep.
        retry: Loads the same files with further overrides.
    """
    sweep = draft.spec.sweep
    assert sweep is not None
    _costs(draft, sweep)
    _metric(draft, sweep)
    written = _written(draft)
    if written == {}:
        draft.merged.add(SPACE, "must be a block of at least one key, found an empty block", at_key=True)
    if len(sweep.space) > MOST_KEYS:
        draft.merged.add(SPACE, f"must be at most {MOST_KEYS} keys, found {len(sweep.space)}", at_key=True)
        return
    values = sum(len(prior.values or ()) for prior in sweep.space.values())
    if values > MOST_IN_ALL:
        draft.merged.add(SPACE, f"must hold at most {MOST_IN_ALL} values in all, found {values}", at_key=True)
        return
    space = _searchable(draft, sweep.space)
    _repeated(draft, space)
    reference = retry(["sweep=null"])
    base = dict(by_key(draft.spec.model_dump(mode="json") if reference.resolved is None else reference.resolved))
    lost = set(written) - set(space) if isinstance(written, dict) else set()
    bad = _conditions(draft, space, base, lost, sure=reference.resolved is not None)
    try_values(draft, {k: p for k, p in space.items() if k not in bad}, base, reference, retry)


def _written(draft: Draft) -> Any:
    """The space as it is written."""
    sweep = draft.merged.data.get("sweep")
    return sweep.get("space") if isinstance(sweep, dict) else None


# --- the search -----------------------------------------------------------------------------------------------


def _costs(draft: Draft, sweep: SweepBlock) -> None:
    """What a search spends, and of what."""
    if not draft.sure("sweep.search", "sweep.proxy"):
        return
    predicted = sweep.search.type == "predicted"
    if predicted and sweep.proxy is not None:
        message = "a predicted search trains nothing; leave it out, or take another search"
        draft.merged.add(("sweep", "proxy"), message, at_key=True)
    proxy = sweep.proxy
    if proxy is not None and proxy.text is not None and proxy.messages is not None:
        message = "give either sweep.proxy.text or sweep.proxy.messages, not both"
        draft.merged.add(("sweep", "proxy", "messages"), message, at_key=True)
    if predicted or proxy is not None or not draft.sure("noise", "data.visibility"):
        return
    policy = draft.plugins[("noise",)]
    if isinstance(policy, NoisePolicy) and not policy.private and draft.spec.data.visibility != "public":
        message = f"with noise.type: {draft.spec.noise.type}, nothing is promised: there is no budget to search in"
        draft.merged.add(("sweep",), message, at_key=True)


def _metric(draft: Draft, sweep: SweepBlock) -> None:
    """The metric that selects is one that every trial releases."""
    if not draft.sure("sweep.search", "sweep.select"):
        return
    holdout = draft.spec.data.holdout
    asked = draft.sure("data.holdout") and draft.written("data.holdout.users")
    if sweep.search.type != "predicted" and asked and holdout.file is None and not holdout.users:
        message = "trials are compared on hold-out users, and there are none: data.holdout.users must be above 0"
        draft.merged.add(("sweep",), message, at_key=True)
    metric = sweep.select.metric
    path: KeyPath = ("sweep", "select", "metric")
    changing = any(key.split(".")[0] in ("segmentation", "sensitivity", "groups") for key in sweep.space)
    groups = None if changing else known_groups(draft)
    names = [group.name for group in groups or ()]
    if draft.spec.groups is not None and names:
        names.append(draft.spec.groups.merged)
    known = [LOSS, *(f"{LOSS}/{name}" for name in names)]
    if metric != LOSS and not metric.startswith(f"{LOSS}/"):
        draft.merged.add(path, f"must be {LOSS} or {LOSS}/GROUP, found {show(metric)}", suggest(metric, known))
    elif names and metric not in known:
        message = f"there is no such group (there are: {', '.join(names)})"
        draft.merged.add(path, message, suggest(metric, known))


# --- the keys -------------------------------------------------------------------------------------------------


def _searchable(draft: Draft, space: Space) -> dict[str, PriorBlock]:
    """The keys that can be searched; of the others, the draft is told."""
    found: dict[str, PriorBlock] = {}
    spelled: dict[tuple[str | int, ...], str] = {}
    for key, prior in space.items():
        problem = _refused(key)
        parts = tuple(int(p) if p.isascii() and p.isdigit() and len(p) < 10 else p for p in key.split("."))
        if problem is None and parts in spelled:
            problem = f"is {spelled[parts]}, which is searched already", None
        spelled.setdefault(parts, key)
        if problem is None:
            found[key] = prior
        else:
            draft.merged.add((*SPACE, key), *problem, at_key=True)
    for key in list(found):
        above = owner(key.rpartition(".")[0], found) if "." in key else None
        if above is not None:
            draft.merged.add((*SPACE, key), f"lies in {above}, which is searched as a whole", at_key=True)
            del found[key]
    return found


def _refused(key: str) -> tuple[str, str | None] | None:
    """Why a key can't be searched, and what was probably meant; None: it can, if it exists."""
    parts = key.split(".")
    if not all(parts) or key != key.strip() or "=" in key:
        return "must be a dotted key, as in clipping.norm", None
    root = parts[0]
    if root in ROOTS or parts[:2] == ["model", "adapter"]:
        return None
    if root == "model" and len(parts) > 1 and parts[1] not in ("base", "dtype"):
        near = suggest(parts[1], ["adapter"])
        return "unknown key", ".".join(["model", near, *parts[2:]]) if near else None
    if root in _REASONS:
        return f"can't be searched: {_REASONS[root]}", None
    meant = only_place(key, ()) if len(parts) == 1 else None
    if meant is not None and _refused(meant) is None:
        return "unknown key", meant
    near = suggest(root, [*ROOTS, *_REASONS])
    if near is not None and _refused(".".join([near, *parts[1:]])) is None:
        return "unknown key", ".".join([near, *parts[1:]])
    return f"unknown key; what can be searched lies in {', '.join(ROOTS)} or model.adapter", None


def _repeated(draft: Draft, space: Space) -> None:
    """The same value twice would be drawn twice as often, by mistake."""
    for key, prior in space.items():
        seen: set[str] = set()
        for index, value in enumerate(prior.values or ()):
            text = json.dumps(value, sort_keys=True)
            if text in seen:
                draft.merged.add((*SPACE, key, prior.law, index), f"{show(value)} is given a second time")
            seen.add(text)


# --- conditions -----------------------------------------------------------------------------------------------


def _conditions(draft: Draft, space: Space, base: Mapping[str, Any], lost: Iterable[str], *, sure: bool) -> set[str]:
    """Checks what `when` names.

    Args:
        draft: Is told what is wrong.
        space: The keys that can be searched.
        base: The resolved spec's values, by dotted key.
        lost: Keys of the space that are wrong themselves.
        sure: Whether `base` is the whole spec, so that what it lacks does not exist.

    Returns:
        The keys whose conditions are wrong, or name keys that are.
    """
    wrong = dict.fromkeys(lost)
    bad: set[str] = set()
    for key, prior in space.items():
        for name, allowed in prior.conditions.items():
            path: KeyPath = (*SPACE, key, "when", name)
            before = len(draft.merged.problems)
            if not allowed:
                draft.merged.add(path, "must be a value or a list of values, found an empty list")
            elif any(name == k or name.startswith(f"{k}.") for k in wrong):
                bad.add(key)
            elif (above := owner(name, space)) is not None:
                _on_searched(draft, path, space[above], above, allowed)
            elif any(k.startswith(f"{name}.") for k in space):
                below = next(k for k in space if k.startswith(f"{name}."))
                draft.merged.add(path, f"is a block, of which {below} is searched: name that one", at_key=True)
            elif sure and name not in base:
                draft.merged.add(path, "there is no such key in the spec", suggest(name, [*space, *base]), at_key=True)
            elif sure and isinstance(base[name], dict):
                draft.merged.add(path, "is a block; name one of its keys", at_key=True)
            if len(draft.merged.problems) > before:
                bad.add(key)
    try:
        ordered(space)
    except ValueError as circle:
        first = str(circle).split(" → ", maxsplit=1)[0]
        draft.merged.add((*SPACE, first, "when"), f"goes in a circle: {circle}", at_key=True)
        bad |= set(space)
    while more := {k for k, p in space.items() if k not in bad and any(owner(n, space) in bad for n in p.conditions)}:
        bad |= more
    return bad


def _on_searched(draft: Draft, path: KeyPath, prior: PriorBlock, above: str, allowed: tuple[Any, ...]) -> None:
    """A condition on another key of the space: on values that it can have."""
    name = str(path[-1])
    if prior.law in ("uniform", "loguniform"):
        message = f"{above} is drawn from a range ({prior.law}), and never has exactly one value"
        draft.merged.add(path, message, at_key=True)
        return
    listed = len(allowed) > 1 or isinstance(_at(draft.merged.data, path), list)
    for index, value in enumerate(allowed):
        if prior.ends is not None:
            fine = type(value) is int and prior.ends[0] <= value <= prior.ends[1]
            near = None
        else:
            can = tuple(v for one in prior.values or () if (v := inside(one, name, above)) is not NOTHING)
            fine = is_one_of(value, can)
            near = suggest(value, [v for v in can if isinstance(v, str)]) if isinstance(value, str) else None
        if not fine:
            where = (*path, index) if listed else path
            draft.merged.add(where, f"{show(value)} is none of the values of {name} in this space", near)


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data
