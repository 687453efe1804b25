"""What no single block can know: the checks between the blocks of a spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from harness.packages import name_of
from harness.plugins import (
    Access,
    Group,
    Lever,
    MixedSegmenter,
    NoisePolicy,
    PluginError,
    Proposal,
    PublicSegmenter,
    Segmenter,
    SensitivityScore,
    suggest,
)
from harness.spec.adapter_checks import check_adapter
from harness.spec.audit_checks import check_audit
from harness.spec.block import TextBlock
from harness.spec.draft import Draft
from harness.spec.ledger_url import DEFAULT_LEDGER, holds_password, ledger_problem
from harness.spec.models import MOST_PLD_STEPS, private_columns
from harness.spec.plugin_blocks import add_plugin_error
from harness.spec.privacy_groups import groups_of
from harness.spec.problems import KeyPath, one_line
from harness.spec.sampling_checks import check_sampling

OPTIMIZER_PARAMETERS: Mapping[str, frozenset[str]] = {
    "adamw": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "adam": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "sgd": frozenset({"lr", "momentum", "weight_decay"}),
}
WEIGHT_TOLERANCE = 1e-6


def check(draft: Draft) -> None:
    """Adds every problem between blocks to the draft."""
    check_sampling(draft)
    _holdout(draft)
    _text(draft)
    _columns(draft)
    _times(draft)
    _delta(draft)
    _ledger(draft)
    _optimizer(draft)
    check_adapter(draft)
    _steps(draft)
    _schedule(draft)
    _evaluation(draft)
    check_audit(draft)
    groups = known_groups(draft)
    _weights(draft, groups)
    _merging(draft, groups)
    _noise(draft, groups)


def _holdout(draft: Draft) -> None:
    """Users held out: a fraction, or a file."""
    if not draft.sure("data.holdout.users", "data.holdout.file"):
        return
    holdout, merged = draft.spec.data.holdout, draft.merged
    if holdout.file is None and not draft.written("data.holdout.users"):
        message = "is missing; it must be a number of at least 0 and below 1 (or give data.holdout.file)"
        merged.add_missing(("data", "holdout", "users"), message)
    elif holdout.file is not None and holdout.users:
        merged.add(("data", "holdout", "file"), "give either users or file, not both", at_key=True)
    elif holdout.file is not None and holdout.visibility == "private":
        merged.add(("data", "holdout", "file"), "its users give up protection: private hold-out users need users: …")
    elif holdout.file is not None and draft.spec.data.population != "public":
        # Which of its users are trained on shows in what is evaluated; that is no secret only where names are public.
        message = "needs population: public, since who is in both files shows in the evaluation"
        merged.add(("data", "holdout", "file"), message, at_key=True)


def _text(draft: Draft) -> None:
    """The private columns: of a text, of a prompt and its completion, or of messages."""
    data, merged = draft.spec.data, draft.merged
    if not draft.sure("data.text", "data.messages"):
        return
    if data.text is not None and data.messages is not None:
        merged.add(("data", "messages"), "give either data.text or data.messages, not both", at_key=True)
    if isinstance(data.text, TextBlock) and data.text.prompt == data.text.completion:
        path: KeyPath = ("data", "text", "completion")
        merged.add(path, f'the column "{data.text.prompt}" can\'t hold both the prompt and the completion')


def _columns(draft: Draft) -> None:
    """Public columns, and who reads them."""
    data, merged = draft.spec.data, draft.merged
    private = private_columns(data) if draft.sure("data.text", "data.messages") else {}
    for private_key, column in private.items():
        if draft.sure("data.user") and data.user == column:
            own = "user" if draft.written("data.user") else private_key.partition(".")[2]
            path: KeyPath = ("data", *own.split("."))
            what = private_key.rpartition(".")[2]
            merged.add(path, f'the column "{column}" can\'t hold both the {what} and the user')
    if not draft.sure("data.attributes"):
        return
    for index, name in enumerate(data.attributes):
        path = ("data", "attributes", index)
        if name in data.attributes[:index]:
            merged.add(path, f'"{name}" is named twice')
        for what in (key.rpartition(".")[2] for key, column in private.items() if column == name):
            merged.add(path, f'"{name}" is the column of the {what}, which is private')
        if name == data.user and draft.sure("data.user"):
            merged.add(path, f'"{name}" is the column of the user, not a property of many users')
    rule = draft.plugins[("segmentation",)]
    if not isinstance(rule, PublicSegmenter | MixedSegmenter):
        return
    for column in _ask(draft, rule, "columns") or ():
        if column not in data.attributes:
            key = _parameter_with(rule.parameters, column)
            near = suggest(column, data.attributes)
            merged.add(("segmentation", *key), f'the column "{column}" is not among data.attributes', near)


def _times(draft: Draft) -> None:
    """The column of times, and the plugins that can't do without one."""
    data, merged = draft.spec.data, draft.merged
    if not draft.sure("data.time"):
        return
    if data.time is None:
        for block, plugin in draft.plugins.items():
            if not isinstance(plugin, Segmenter | SensitivityScore):
                continue
            if (problem := _missing_times(plugin)) is not None:
                merged.add(block, f"{_type_at(draft, block)} {problem}", at_key=True)
        return
    private = private_columns(data) if draft.sure("data.text", "data.messages") else {}
    others = {column: f"the {key.rpartition('.')[2]}" for key, column in private.items()}
    others |= dict.fromkeys(data.attributes, "a public attribute") if draft.sure("data.attributes") else {}
    others |= {data.user: "the user"} if draft.sure("data.user") else {}
    if data.time in others:
        merged.add(("data", "time"), f'the column "{data.time}" can\'t hold both the time and {others[data.time]}')


def _type_at(draft: Draft, block: KeyPath) -> str:
    """The name of the plugin of a block, as the spec writes it."""
    node: Any = draft.merged.data
    for part in block:
        node = node[part]
    return str(node["type"])


def _missing_times(plugin: Segmenter | SensitivityScore) -> str | None:
    """What is wrong with a plugin where the spec names no column of times; None: nothing."""
    try:
        needed = bool(plugin.uses_times)
    except (Exception, SystemExit) as error:  # somebody's own plugin may raise anything
        return one_line(f"fails when asked for `uses_times` ({type(error).__name__}: {error})")
    return "needs data.time: the column that says when a record was written" if needed else None


def _parameter_with(parameters: BaseModel, value: str) -> tuple[str, ...]:
    """The parameter of a plugin, or of a part of it, that holds this value, if one plainly does."""
    for name, held in parameters:
        if held == value or (isinstance(held, (tuple, list)) and value in held):
            return (name,)
        if isinstance(held, BaseModel) and (inner := _parameter_with(held, value)):
            return (name, *inner)
    return ()


def _delta(draft: Draft) -> None:
    if not draft.sure("privacy.delta", "data.population") or draft.spec.privacy.delta is not None:
        return
    if draft.spec.data.population != "public":
        draft.merged.add_missing(("privacy", "delta"), "must be given where data.population is not public")


def _ledger(draft: Draft) -> None:
    """A URL of a database that is known. It is never quoted, and a spec is copied to where everybody may read it."""
    url = draft.spec.privacy.ledger
    if url is None or url == DEFAULT_LEDGER or not draft.sure("privacy.ledger"):
        return
    if problem := ledger_problem(url):
        draft.merged.add(("privacy", "ledger"), problem)
    elif holds_password(url):
        message = "holds a password, and specs are copied into runs; leave it to UUDP_LEDGER, PGPASSWORD or ~/.pgpass"
        draft.merged.add(("privacy", "ledger"), message)


def _optimizer(draft: Draft) -> None:
    if not draft.sure("train.optimizer.type"):
        return
    optimizer = draft.spec.train.optimizer
    known = OPTIMIZER_PARAMETERS[optimizer.type]
    for name in type(optimizer).model_fields:
        if name != "type" and name not in known and getattr(optimizer, name) is not None:
            has = ", ".join(sorted(known))
            message = f"is no parameter of {optimizer.type}, which has {has}"
            draft.merged.add(("train", "optimizer", name), message, at_key=True)


def _steps(draft: Draft) -> None:
    """As many as the accountant can account while somebody waits."""
    steps, policy = draft.spec.train.steps, draft.plugins[("noise",)]
    private = not isinstance(policy, NoisePolicy) or policy.private
    if not (private and draft.spec.privacy.accountant == "pld" and draft.sure("train.steps", "privacy.accountant")):
        return
    if steps > MOST_PLD_STEPS:
        message = f"more than {MOST_PLD_STEPS} steps take the PLD accountant too long; use privacy.accountant: rdp"
        draft.merged.add(("train", "steps"), message)


def _schedule(draft: Draft) -> None:
    steps, warmup = draft.spec.train.steps, draft.spec.train.schedule.warmup
    if draft.sure("train.steps", "train.schedule.warmup") and warmup >= steps:
        message = f"{warmup} steps of warmup, but there are {steps} steps in all"
        draft.merged.add(("train", "schedule", "warmup"), message)


def _evaluation(draft: Draft) -> None:
    if draft.spec.evaluation.ordinary and draft.spec.data.holdout.visibility == "private":
        if draft.sure("data.holdout.visibility", "evaluation.ordinary"):
            message = (
                "training without protection is evaluated exactly; private hold-out users allow no such evaluation"
            )
            draft.merged.add(("evaluation", "ordinary"), message)
        return
    if not draft.spec.evaluation.ordinary or draft.spec.data.visibility == "public":
        return
    if draft.sure("data.visibility", "evaluation.ordinary"):
        message = "training without protection is for data.visibility: public only"
        draft.merged.add(("evaluation", "ordinary"), message)


# --- plugins ------------------------------------------------------------------------------------------------


def _ask(draft: Draft, rule: Segmenter, attribute: str) -> tuple[str, ...] | None:
    """Names that a segmentation gives; None where it has none yet, or fails, which is then a problem."""
    try:
        names = getattr(rule, attribute)
        if isinstance(names, str):
            raise TypeError(f"{attribute} is one text, not several")
        return None if names is None else tuple(str(name) for name in names)
    except PluginError as error:
        add_plugin_error(error, ("segmentation",), draft.merged)
    except (Exception, SystemExit) as error:  # somebody's own plugin may raise anything
        message = f"{name_of(type(rule))} fails ({type(error).__name__}: {error})"
        draft.merged.add(("segmentation",), one_line(message), at_key=True)
    return None


def _segments(draft: Draft) -> tuple[str, ...] | None:
    """Names of all segments, where the spec alone says."""
    rule = draft.plugins[("segmentation",)]
    if not isinstance(rule, Segmenter) or not draft.sure("segmentation"):
        return None
    names = _ask(draft, rule, "segments")
    if names is not None and not 0 < len(set(names)) == len(names):
        message = f"{name_of(type(rule))} must announce at least one segment, all with different names"
        draft.merged.add(("segmentation",), message, at_key=True)
        return None
    return names


def known_groups(draft: Draft) -> tuple[Group, ...] | None:
    """The privacy groups, where the spec alone says."""
    segments = _segments(draft)
    if segments is None or not draft.sure("sensitivity"):
        return None
    sensitivity = draft.spec.sensitivity
    return groups_of(segments, sensitivity.tiers.names if sensitivity else ())


def _weights(draft: Draft, groups: tuple[Group, ...] | None) -> None:
    weights, merged = draft.spec.data.weights, draft.merged
    if not draft.sure("data.weights"):
        return
    path: KeyPath = ("data", "weights")
    names = None if groups is None else tuple(group.name for group in groups)
    if weights == "noisy":
        return
    if weights == "public":
        rule = draft.plugins[("segmentation",)]
        own = draft.spec.sensitivity is not None or (isinstance(rule, Segmenter) and rule.access is not Access.PUBLIC)
        if own and names and len(names) > 1:
            example = ", ".join(f"{name}: {share:g}" for name, share in zip(names, _shares(names), strict=True))
            what = "segments" if draft.spec.sensitivity is None else "tiers"
            message = (
                f"can't be counted where {what} are made from users' own records, which is private; "
                f"give them, for example `data.weights: {{{example}}}`"
            )
            if draft.written("data.weights"):
                merged.add(path, message)
            else:
                merged.add_missing(path, message)
        return
    total = math.fsum(weights.values())
    if abs(total - 1) > WEIGHT_TOLERANCE:
        merged.add(path, f"must sum to 1, found {total:.6g}", at_key=True)
    noun = "segment" if draft.spec.sensitivity is None else "group"
    for name in weights:
        if names is not None and name not in names:
            message = f"there is no such {noun} (there are: {', '.join(names)})"
            merged.add((*path, name), message, suggest(name, names), at_key=True)
    lacking = [name for name in names or () if name not in weights]
    if lacking:
        merged.add(path, f"nothing is given for {', '.join(lacking)}", at_key=True)


def _merging(draft: Draft, groups: tuple[Group, ...] | None) -> None:
    """Small groups are merged by what was known before anything was asked."""
    block, merged = draft.spec.groups, draft.merged
    if block is None or not draft.sure("groups"):
        return
    _dropping(draft, groups)
    if block.smallest is None:
        if not block.drop or draft.written("groups.merged"):
            merged.add_missing(("groups", "smallest"), "is missing; it must be a number above 0 and below 1")
        return
    if draft.spec.data.weights == "noisy" and draft.sure("data.weights"):
        message = "needs weights that are known beforehand, and data.weights is noisy"
        merged.add(("groups", "smallest"), message, at_key=True)
    if any(block.merged in (group.name, group.segment, group.tier) for group in groups or ()):
        path: KeyPath = ("groups", "merged") if draft.written("groups.merged") else ("groups",)
        message = f'"{block.merged}" is a segment, tier or group itself; choose another name for the merged one'
        merged.add(path, message, at_key=path == ("groups",))


def _dropping(draft: Draft, groups: tuple[Group, ...] | None) -> None:
    """Groups are left out by what is public: their names, and how many users are left."""
    spec, merged, path = draft.spec, draft.merged, ("groups", "drop")
    drop = spec.groups.drop if spec.groups is not None else ()
    if not drop:
        return
    names = None if groups is None else [group.name for group in groups]
    for index, name in enumerate(drop):
        if name in drop[:index]:
            merged.add((*path, index), f'"{name}" a second time')
        elif names is not None and name not in names:
            merged.add(
                (*path, index), f'there is no group "{name}" (there are: {", ".join(names)})', suggest(name, names)
            )
    if names is not None and set(names) <= set(drop):
        merged.add(path, "nobody would be left to train on", at_key=True)
    noisy = [key for key in ("population", "weights") if getattr(spec.data, key) == "noisy"]
    if noisy and draft.sure(f"data.{noisy[0]}"):
        message = f"needs numbers of users that are known beforehand, and data.{noisy[0]} is noisy"
        merged.add(path, message, at_key=True)
    if spec.data.holdout.visibility == "private" and draft.sure("data.holdout"):
        merged.add(path, "does not go with private hold-out users (data.holdout.visibility)", at_key=True)
    if spec.privacy.delta is None and draft.sure("privacy.delta"):
        merged.add(path, "needs privacy.delta, which would follow from fewer users", at_key=True)


def _shares(segments: tuple[str, ...]) -> list[float]:
    """Equal shares with few digits whose sum is 1."""
    scale = 100 if len(segments) <= 100 else 10 ** len(str(len(segments)))
    each = scale // len(segments)
    return [each / scale] * (len(segments) - 1) + [(scale - each * (len(segments) - 1)) / scale]


def _noise(draft: Draft, found: tuple[Group, ...] | None) -> None:
    policy = draft.plugins[("noise",)]
    if found is None or not isinstance(policy, NoisePolicy) or not draft.sure("privacy.epsilon", "noise"):
        return
    groups = list(found)
    epsilon = draft.spec.privacy.epsilon
    try:
        proposal = policy.propose(groups, epsilon)
        message = _flaw(proposal, groups, epsilon)
    except PluginError as error:
        add_plugin_error(error, ("noise",), draft.merged)
        return
    except (Exception, SystemExit) as error:  # somebody's own plugin may raise anything
        message = f"fails ({type(error).__name__}: {error})"
    if message:
        draft.merged.add(("noise",), one_line(f"{name_of(type(policy))} {message}"), at_key=True)


def _flaw(proposal: Proposal, groups: list[Group], epsilon: float) -> str | None:
    """What is wrong with a proposal of somebody's own policy."""
    if not isinstance(proposal, Proposal) or not isinstance(proposal.epsilon, Mapping | None):
        return "proposes no Proposal with a target ε per group"
    if not isinstance(proposal.lever, Lever):
        return "proposes a lever that does not exist"
    if proposal.epsilon is None:
        return None
    for group in groups:
        target = proposal.epsilon.get(group.name)
        if target is None:
            return f'proposes nothing for the group "{group.name}"'
        if isinstance(target, bool) or not isinstance(target, int | float) or not math.isfinite(target):
            return f'proposes {target!r} for "{group.name}", which is no number'
        if not 0 < target <= epsilon:
            return f'proposes ε = {target:g} for "{group.name}"; privacy.epsilon is {epsilon:g}'
    return None
