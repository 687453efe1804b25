"""A run's folder → every ε recomputed from the mechanism that it states, or one line that says why it is refused.

What is checked, in this order: the mechanism is one, and has the digest that both files name; the plan's levers and
the spec are its own; the run is finished and released no step that was not accounted; every ε that is claimed is at
least what the mechanism gives. Then the guarantee is written again in our own words, so that no page shows others'.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.errors import UserError
from harness.privacy.accounting import OneRun, charges_epsilon
from harness.privacy.guarantee import Entered, Guarantee, SearchCost
from harness.privacy.mechanism import Mechanism
from harness.privacy.recomputing import PublishedSearch, Recomputed, mechanism_of, recompute, search_of, typed
from harness.privacy.search import Searched
from harness.reporting.leaderboard import consistency
from harness.reporting.leaderboard.audits import Audited, as_shown, audited, planted_of
from harness.reporting.leaderboard.files import Refused, harmless
from harness.reporting.leaderboard.reading import Cell, RunFiles
from harness.reporting.records import RunRecord, block, items, number, texts

SLACK = 1e-6
"""Relative: by so much a recomputed ε may be above the claim, through rounding on another machine."""
TINY = 1e-9
APART = 0.01
"""Relative: a claim that is by more above what is recomputed is shown as a difference, though it hides nothing."""
EXTRAPOLATED = ("extrapolated", "emulated")
"""Keys of a result that stands for another one than was run."""
_SAYS_MORE = re.compile(r"[εϵ𝜀]|epsilon|privacy|=", re.IGNORECASE)
_NAMED = re.compile(r"ε\s*=\s*([0-9][0-9.,]*)")


@dataclass(frozen=True)
class Verified:
    """A run whose files agree with each other, and every ε of which follows from its mechanism.

    Attributes:
        files: As they were read.
        record: The same for a report: texts that steer nothing, and the guarantee in our own words.
        mechanism: What is said to have been executed.
        claimed: The run's ε; None: it claims none, and nothing below is known.
        groups: ε claimed of each group's users.
        recomputed: What the mechanism gives.
        audit: What attacks reached.
    """

    files: RunFiles
    record: RunRecord
    mechanism: Mechanism
    claimed: float | None
    groups: tuple[float, ...]
    recomputed: Recomputed | None
    audit: Audited | None

    @property
    def private(self) -> bool:
        """Whether it claims a guarantee."""
        return self.claimed is not None

    @property
    def overclaims(self) -> bool:
        """Whether it claims more than a percent above what the mechanism gives: of itself, or of a group."""
        if self.recomputed is None or self.claimed is None:
            return False
        pairs = [(self.claimed, self.recomputed.total)]
        if self.record.privacy.get("any_group") is not True:
            pairs += zip(self.groups, self.recomputed.groups, strict=True)
        return any(claimed > value * (1 + APART) for claimed, value in pairs)


def verify(files: RunFiles, cell: Cell | None = None) -> Verified:
    """Checks a run, and recomputes its ε.

    Args:
        files: Its released files.
        cell: What a suite says that it is.

    Raises:
        Refused: Something is missing, wrong or contradictory.
    """
    try:
        return _verify(files, cell)
    except Refused:
        raise
    except UserError as error:
        raise Refused(str(error)) from None
    except (ArithmeticError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        # The files are anybody's: what nobody thought of is a reason to refuse, and no traceback.
        raise Refused(f"its files can not be understood ({type(error).__name__})") from None


def _verify(files: RunFiles, cell: Cell | None) -> Verified:
    plan, privacy, spec = files.plan, files.privacy, files.spec
    told = [("plan.json", plan), ("privacy.json", privacy), ("audit.json", files.audit or {})]
    for name, document in [*told, *(("metrics.jsonl", row) for row in files.metrics)]:
        if any(document.get(key) for key in EXTRAPOLATED):
            raise Refused(f"{name} says that the result is extrapolated")
    if privacy.get("mechanism") is None:
        raise Refused("privacy.json does not hold the mechanism")
    mechanism = mechanism_of(privacy["mechanism"])
    for name, document in (("privacy.json", privacy), ("plan.json", plan)):
        if document.get("mechanism_digest") != mechanism.digest:
            raise Refused(f"{name} names another mechanism_digest than its mechanism has")
    consistency.check_plan(plan, mechanism)
    consistency.check_finished(files, mechanism)
    consistency.check_spec(spec, plan, privacy, mechanism)
    if cell is not None and cell.seed is not None and spec.get("seed") != cell.seed:
        raise Refused("the suite says another seed than the spec")
    if privacy.get("private") is not mechanism.private:
        raise Refused("privacy.json says something else about privacy than its mechanism does")
    if not mechanism.private:
        return _without_privacy(files, mechanism)
    return _private(files, mechanism, cell)


def _without_privacy(files: RunFiles, mechanism: Mechanism) -> Verified:
    for document in (files.plan, files.privacy):
        stated = [document.get("epsilon"), *(g.get("epsilon") for g in items(document, "groups"))]
        if any(value is not None for value in stated):
            raise Refused("an ε is claimed without noise")
    guarantee = dataclasses.replace(_guarantee(files, mechanism, None, None), delta=None)
    audit = audited(files.audit, None, None, {}, planted_of(mechanism))
    return Verified(files, _record(files, guarantee, mechanism, audit, {}), mechanism, None, (), None, audit)


def _private(files: RunFiles, mechanism: Mechanism, cell: Cell | None) -> Verified:
    plan, privacy = files.plan, files.privacy
    total, delta, groups = _claims(plan, privacy, mechanism)
    any_group = privacy.get("any_group")
    if any_group is not (plan.get("claimed_by_group") is False):
        raise Refused("any_group of privacy.json and claimed_by_group of plan.json contradict each other")
    search = None if privacy.get("search") is None else search_of(privacy["search"], len(mechanism.groups))
    _check_sweep(files, search)
    found = recompute(mechanism, delta, _accountant(files), any_group=bool(any_group), search=search)
    if privacy.get("accountant") != found.accountant or plan.get("accountant") != found.accountant:
        raise Refused(f"the accountant that answers is {found.accountant}, which the files do not say")
    for entry, claim, value in zip(mechanism.groups, groups, found.groups, strict=True):
        # Of groups that are learnt only the total is claimed; what stands for a group is what its levers aim at.
        _check_claim(claim, value, f"group {entry.name} claims" if len(groups) > 1 else "the run claims")
    held = number(block(privacy, "holdout").get("epsilon"))
    if found.holdout is not None:
        if held is None:
            raise Refused("privacy.json states no ε of its protected hold-out users")
        _check_claim(held, found.holdout, "hold-out users are told")
    _check_claim(total, found.total, "the run claims")
    _check_targets(files, found, total, cell, any_group=bool(any_group))
    cost = _cost(search)
    guarantee = _guarantee(files, mechanism, groups, delta)
    guarantee = dataclasses.replace(
        guarantee, accountant=found.accountant, largest=total if any_group else None, holdout=held, search=cost
    )
    if abs((guarantee.total or 0.0) - total) > TINY * total:
        raise Refused("ε of privacy.json is not the largest that it states")
    _check_statement(privacy, guarantee)
    _check_rest(privacy, guarantee)
    own = {g.name: total if any_group else claim for g, claim in zip(mechanism.groups, groups, strict=True)}
    audit = audited(files.audit, total, delta, own, planted_of(mechanism))
    record = _record(files, guarantee, mechanism, audit, own)
    return Verified(files, record, mechanism, total, groups, found, audit)


def _claims(
    plan: Mapping[str, Any], privacy: Mapping[str, Any], mechanism: Mechanism
) -> tuple[float, float, tuple[float, ...]]:
    """ε and δ of the run and ε of every group, as both files say."""
    names = [g.name for g in mechanism.groups]
    found = []
    for where, document in (("privacy.json", privacy), ("plan.json", plan)):
        entries = items(document, "groups")
        if [entry.get("name") for entry in entries] != names:
            raise Refused(f"{where} has other groups than the mechanism")
        values = [
            number(document.get("epsilon")),
            number(document.get("delta")),
            *(number(e.get("epsilon")) for e in entries),
        ]
        if any(value is None or value < 0 for value in values):
            raise Refused(f"{where}: ε and δ must be finite numbers that are not negative")
        found.append([float(value or 0.0) for value in values])
    if found[0] != found[1]:
        raise Refused("privacy.json and plan.json state different ε or δ")
    total, delta, *groups = found[0]
    return total, delta, tuple(groups)


def _check_sweep(files: RunFiles, search: PublishedSearch | None) -> None:
    """That sweep.json tells of the search whose price is claimed."""
    charged = files.sweep is not None and files.sweep.get("charged") is not False
    if search is None and charged:
        raise Refused("sweep.json says that trials were charged, and privacy.json states no search")
    if search is not None and (files.sweep is None or files.sweep.get("trials") != dataclasses.asdict(search.trials)):
        raise Refused("sweep.json tells of another search than privacy.json")


def _accountant(files: RunFiles) -> OneRun:
    """The one that the spec asks for."""
    asked = block(files.spec, "privacy").get("accountant")
    if asked not in ("pld", "rdp"):
        raise Refused("spec.yaml names no accountant (pld or rdp)")
    return "pld" if asked == "pld" else "rdp"


def _check_claim(claimed: float, value: float, who: str) -> None:
    if not value <= claimed * (1 + SLACK) + TINY:
        given = f"{value:.6g}" if math.isfinite(value) else "infinite"
        raise Refused(f"{who} ε = {claimed:.6g}, but what the mechanism gives is {given}")


def _check_targets(files: RunFiles, found: Recomputed, total: float, cell: Cell | None, *, any_group: bool) -> None:
    """That the run keeps to the budget of its spec and of its cell, and every group to its target."""
    budget = number(block(files.spec, "privacy").get("epsilon"))
    if budget is None:
        raise Refused("spec.yaml states no privacy.epsilon")
    worst = max(total, found.total)
    if not worst <= budget * (1 + SLACK):
        raise Refused(f"ε = {worst:.6g} is above the spec's budget of {budget:g}")
    if cell is not None and cell.budget is not None and not worst <= cell.budget * (1 + SLACK):
        raise Refused(f"ε = {worst:.6g} is above its cell's budget of {cell.budget:g}")
    for entry, value in zip(items(files.plan, "groups"), found.groups, strict=True):
        target = number(entry.get("target_epsilon"))
        if target is None or (not any_group and not value <= target * (1 + SLACK) + TINY):
            raise Refused(f"ε of group {entry.get('name')} is above its target")
        if not target <= budget * (1 + SLACK):
            raise Refused(f"the target of group {entry.get('name')} is above the spec's budget of {budget:g}")


# --- in our own words ---------------------------------------------------------------------------------------


def _cost(search: PublishedSearch | None) -> SearchCost | None:
    if search is None:
        return None
    searched = Searched(search.trials, rate=1.0, steps=1, orders=search.orders)
    return SearchCost(searched, search.curves, search.holdout)


def _guarantee(
    files: RunFiles, mechanism: Mechanism, groups: tuple[float, ...] | None, delta: float | None
) -> Guarantee:
    """The guarantee that these files are about, as the harness would state it."""
    privacy = files.privacy
    data, held, ledger = block(privacy, "data"), block(privacy, "holdout"), privacy.get("ledger")
    name, visibility = data.get("name"), data.get("visibility")
    if not isinstance(name, str) or visibility not in ("public", "private"):
        raise Refused("privacy.json does not say whether its data are public or private")
    fraction = number(held.get("fraction"))
    by_file = held.get("file") is True
    if (fraction is None) is not by_file or not 0 <= (fraction or 0.0) < 1:
        raise Refused("privacy.json does not say which users were held out")
    if (held.get("visibility") == "private") is not (mechanism.holdout is not None):
        raise Refused("privacy.json says something else about hold-out users than its mechanism does")
    accountant: Literal["pld", "rdp"] = "rdp" if privacy.get("accountant") == "rdp" else "pld"
    rules = [p for p in items(files.plan, "plugins") if p.get("kind") in ("segmentation", "sensitivity")]
    return Guarantee(
        mechanism,
        groups,
        delta,
        accountant,
        name,
        visibility,
        fraction or 0.0,
        own_records=any("public" not in str(rule.get("access")) for rule in rules),
        counts_public=_declared(privacy),
        holdout_file=by_file,
        ledger=None if ledger is None else typed(Entered, ledger, "ledger"),
    )


def _declared(privacy: Mapping[str, Any]) -> tuple[str, ...]:
    """What the run declares public of its counts: its own words, which nothing else tells; none that name an ε."""
    begin = "Declared public: "
    found = [line.removeprefix(begin).rstrip(".") for line in texts(privacy, "assumptions") if line.startswith(begin)]
    return tuple(line[:300] for line in found[:5] if not _SAYS_MORE.search(line))


def _check_statement(privacy: Mapping[str, Any], guarantee: Guarantee) -> None:
    """That every ε and δ that the statement names is one that it may name."""
    statement = privacy.get("statement")
    own = guarantee.statement()
    if not isinstance(statement, str) or not statement:
        raise Refused("privacy.json makes no statement")
    named, allowed = _NAMED.findall(statement), _NAMED.findall(own)
    if not named or named[0].rstrip(".,") != allowed[0].rstrip(".,"):
        raise Refused("the statement in privacy.json names another ε than privacy.json claims")
    if {n.rstrip(".,") for n in named} - {a.rstrip(".,") for a in allowed}:
        raise Refused("the statement in privacy.json names an ε that is not the run's")


def _check_rest(privacy: Mapping[str, Any], guarantee: Guarantee) -> None:
    """That all else in privacy.json is what the harness would have written."""
    own = guarantee.document("finished", guarantee.mechanism.steps)
    for key in ("unit", "adjacency", "charges", "computational", "holdout", "search"):
        if privacy.get(key) != consistency.as_read(own[key]):
            raise Refused(f"{key} of privacy.json does not go with its mechanism")


def _record(
    files: RunFiles, guarantee: Guarantee, mechanism: Mechanism, audit: Audited | None, groups: Mapping[str, float]
) -> RunRecord:
    """What the report is made from. Numbers that nobody has checked are left out, or computed again."""
    plan = dict(files.plan)
    plan["groups"] = [
        {k: v for k, v in entry.items() if k not in ("curve", "delta_at_zero")} for entry in items(plan, "groups")
    ]
    accountant, delta = block(files.spec, "privacy").get("accountant"), guarantee.delta
    if mechanism.private and delta is not None and guarantee.search is None:
        asked: OneRun = "rdp" if accountant == "rdp" else "pld"
        every = [(c, delta) for c in mechanism.charges] + [(c, mechanism.choice_delta) for c in mechanism.choice]
        plan["charges"] = [
            {**dataclasses.asdict(charge), "epsilon": charges_epsilon((charge,), at, asked), "pending": False}
            for charge, at in every
        ]
    # Nobody has computed these again: ε of the steps before the last, what a ledger had left, words of others.
    total = guarantee.total
    plan["epsilon_by_step"] = [] if total is None else [[mechanism.steps, total]]
    plan["ledger"], plan["notes"] = None, []
    rows = tuple({k: v for k, v in row.items() if k != "epsilon"} for row in files.metrics)
    privacy = guarantee.document("finished", mechanism.steps)
    return RunRecord(
        harmless(files.spec),
        harmless(plan),
        harmless(consistency.as_read(privacy)),
        tuple(harmless(row) for row in rows),
        harmless(files.assessment or {}),
        harmless(files.sweep or {}),
        {} if audit is None else harmless(as_shown(files.audit or {}, audit, guarantee.total, groups)),
    )
