"""What a run asked about all users, and what it cost: charges, candidates, noisy hold-out losses, the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.holdout import BOUND, FIRST_BOUND
from harness.reporting import formatting as f
from harness.reporting.records import RunRecord, block, items, number


def noisy_holdout(record: RunRecord) -> bool:
    """Whether the losses are noisy answers about hold-out users who kept their protection."""
    return block(record.privacy, "holdout").get("visibility") == "private"


def loss_noise(record: RunRecord) -> dict[str, float]:
    """Standard deviation of the noise on a private hold-out loss, in nats per token, by group name; "" is all users.

    It follows from public constants alone: the noise multiplier of the evaluations, the expected number of hold-out
    users and the groups' weights. Of later evaluations; the first one's is `first_noise` times that.

    Returns:
        Nothing where the hold-out is public, or where its size is not known.
    """
    multiplier = number(block(record.plan, "holdout").get("noise_multiplier"))
    users = _holdout_users(record)
    groups = items(record.plan, "groups")
    weights = [number(group.get("weight")) for group in groups]
    if not noisy_holdout(record) or multiplier is None or not users or not groups or None in weights:
        return {}
    known = {str(g.get("name")): w for g, w in zip(groups, weights, strict=True) if w}
    each = {name: multiplier * BOUND / (users * weight) for name, weight in known.items()}
    # The groups' noise is independent, and the whole is their mean by size.
    return {"": multiplier * BOUND * math.sqrt(len(known)) / (users * math.fsum(known.values())), **each}


def _holdout_users(record: RunRecord) -> float | None:
    """How many are expected, from public numbers."""
    population = block(record.plan, "population")
    held, training = number(population.get("holdout_users")), number(population.get("users"))
    share = number(block(record.privacy, "holdout").get("fraction"))
    if held is not None or training is None or share is None or not 0 <= share < 1:
        return held
    return training * share / (1 - share)


def first_noise() -> float:
    """How much more noise the first evaluation has, which has farther to go."""
    return FIRST_BOUND / BOUND


def charge_rows(record: RunRecord) -> list[dict[str, str]]:
    """Each question about all training users: what was asked, with how much noise, and its ε if it stood alone."""
    return [
        {
            "what": str(charge.get("what", f.MISSING)),
            "noise": _noise(charge),
            "epsilon": f.epsilon(number(charge.get("epsilon"))),
        }
        for charge in items(record.plan, "charges")
    ]


def tiers(record: RunRecord) -> tuple[str, str] | None:
    """Where the score is cut into risk tiers, and where the edges come from; None where there are no tiers."""
    held = block(record.plan, "tiers")
    names = [str(name) for name in _listed(held, "names")]
    if not names:
        return None
    edges = [number(edge) for edge in _listed(held, "edges")]
    quantiles = ", ".join(f.significant(number(q)) for q in _listed(held, "quantiles"))
    note = f"noisy quantiles ({quantiles}) of the score, charged" if quantiles else "edges declared in the spec"
    if len(edges) != len(names) - 1:
        return ", ".join(names), note
    parts = [f"{name} below {f.significant(edge)}" for name, edge in zip(names, edges, strict=False)]
    return ", ".join([*parts, f"{names[-1]} from there on"]), note


def _listed(held: Mapping[str, Any], key: str) -> list[Any]:
    found = held.get(key)
    return found if isinstance(found, list) else []


def _noise(charge: Mapping[str, Any]) -> str:
    multiplier, count = number(charge.get("noise_multiplier")), number(charge.get("count"))
    if multiplier is None:
        return ""
    times = f", asked {f.whole(count)} times" if count is not None and count > 1 else ""
    return f"noise {f.significant(multiplier)} × what one user can change{times}"


def holdout_line(record: RunRecord) -> str:
    """What private hold-out users are exposed to, in a sentence; empty where there are none."""
    held = block(record.plan, "holdout")
    value = number(block(record.privacy, "holdout").get("epsilon"))
    if not noisy_holdout(record) or not held:
        return ""
    count, multiplier = number(held.get("evaluations")), number(held.get("noise_multiplier"))
    return (
        f"Hold-out users kept their protection. They are never trained on, and {f.whole(count)} noisy evaluations "
        f"(noise {f.significant(multiplier)} × what one of them can change, each) cost them ε {f.epsilon(value)}; "
        "training users pay nothing for these."
    )


def candidates(record: RunRecord) -> dict[str, Any] | None:
    """What the harness could choose from, by predicted noise; None where the spec left nothing to choose."""
    rows = items(record.plan, "candidates")
    if not rows:
        return None
    median = number(record.plan.get("median_examples_per_user"))
    unit, kept = _chosen(record.plan) if median is not None else (None, None)
    shown = [
        {
            "unit": str(row.get("unit", f.MISSING)),
            "examples": f.whole(number(row.get("examples_per_user"))),
            "noise": f.significant(number(row.get("noise_to_signal")), padded=True),
            "predicted": f.significant(number(row.get("predicted")), padded=True),
            "chosen": row.get("unit") == unit and number(row.get("examples_per_user")) == kept,
        }
        for row in rows
    ]
    return {"rows": shown, "median": "" if median is None else f"{median:.1f}"}


def _chosen(plan: Mapping[str, Any]) -> tuple[object, float | None]:
    kept = {number(group.get("examples_per_user")) for group in items(plan, "groups")}
    return block(plan, "sampling").get("unit"), max((k for k in kept if k is not None), default=None)


def ledger_lines(record: RunRecord) -> list[str]:
    """What the ledger held when the run was planned, and the receipt of its entry."""
    planned, entered = block(record.plan, "ledger"), block(record.privacy, "ledger")
    if not planned and not entered:
        return [
            "No ledger was kept. Nothing here counts what other runs spent on the same data; across runs, ε and δ "
            "add up."
        ]
    url = f.without_credentials(str(entered.get("url") or planned.get("url") or ""))
    lines = [f"Entered in the ledger {url}."]
    remaining = number(planned.get("remaining_epsilon"))
    if remaining is not None:
        lines[0] += f" When this run was planned, ε {f.significant(remaining)} was left for these data."
    spent = number(entered.get("spent_epsilon"))
    if spent is not None and record.private:
        before = f"ε {f.epsilon(spent)}" if spent > 0 else "nothing"
        lines.append(f"Other runs on these data had spent {before}; this run adds ε {f.epsilon(record.epsilon)}.")
    elif entered and entered.get("spent_epsilon") is None:
        lines.append("Another run on these data had no noise, which promises nothing to anybody.")
    sequence, seal = number(entered.get("sequence")), entered.get("hash")
    if sequence is not None and isinstance(seal, str):
        lines.append(f"Receipt: entry {f.whole(sequence)}, sealed {seal[:16]}… (“uudp ledger verify” checks it).")
    return lines


def per_step(expected: float | None, unit: object, groups: Sequence[Mapping[str, Any]]) -> str:
    """How many units a step expects, and how many examples of a user enter it or are kept; in a line."""
    one = "example" if unit == "example" else "user"
    notes = [f"{f.significant(expected)} {one}s expected per step"] if expected is not None else []
    kept = sorted({k for group in groups if (k := number(group.get("examples_per_user"))) is not None})
    if kept:
        most = f.whole(kept[0]) if len(kept) == 1 else f"{f.whole(kept[0])} to {f.whole(kept[-1])}, by group,"
        examples = "example" if kept == [1] else "examples"
        where = "kept of each user" if one == "example" else "of each"
        notes.append(f"at most {most} {examples} {where}")
    return ", ".join(notes)
