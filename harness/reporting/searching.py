"""How a run's hyperparameters were searched, as the report shows it: in words, in prices, and trial by trial.

Of private data it shows the winner alone, whatever the file lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.reporting import formatting as f
from harness.reporting import search_charts as drawings
from harness.reporting.records import LOSS, RunRecord, block, items, number
from harness.reporting.search_charts import Trial, shown

MOST = 300
"""Trials that are drawn and listed, the best ones first."""
OPEN = 12
"""Rows of a table that are seen without opening the rest."""
RERUN = "uudp run spec.yaml"
_RANKED = {
    "worst": "noise to signal of the worst group",
    "overall": "noise to signal of all users together",
    "mean": "mean noise to signal of the groups",
}


def searching(record: RunRecord) -> dict[str, Any] | None:
    """What the template shows of `sweep.json`; None where there is none."""
    sweep = record.sweep
    if not sweep:
        return None
    space = {str(key): prior for key, prior in block(sweep, "space").items() if isinstance(prior, Mapping)}
    predicted = _is_predicted(sweep)
    return {
        "lead": _lead(record, predicted),
        "sentences": list(_sentences(record, predicted)),
        "rerun": RERUN,
        "caution": _caution(record),
        "space": list(_space_rows(space, block(block(sweep, "winner"), "candidate"))),
        "prices": None if predicted else _prices(sweep),
        "recomputed": None if predicted else _recomputed(record),
        "trials": _ranking(sweep, space) if predicted else _trials(record, space),
        "predicted": predicted,
    }


def is_charged(record: RunRecord) -> bool:
    """Whether the run's ε is that of a whole search."""
    return bool(block(record.privacy, "search"))


def _is_predicted(sweep: Mapping[str, Any]) -> bool:
    return block(sweep, "search").get("type") == "predicted" or isinstance(sweep.get("candidates"), list)


def _is_public(record: RunRecord) -> bool:
    """Asked of the guarantee, not of the list of trials: what is shown must be public by its own word."""
    return block(record.privacy, "data").get("visibility") == "public"


def _may_show_trials(record: RunRecord) -> bool:
    """Of public data, or a public proxy; or because ε is that of all trials' outcomes together."""
    all_charged = block(record.privacy, "search").get("law") == "fixed"
    by_proxy = record.sweep.get("proxy") is True and not is_charged(record)
    return _is_public(record) or all_charged or by_proxy


# --- in words -------------------------------------------------------------------------------------------------


def _lead(record: RunRecord, predicted: bool) -> str:
    if predicted:
        return "Choosing cost nothing: nothing private was read."
    if not record.private:
        return "This run protects nobody, so the search has no price."
    if not is_charged(record):
        return "Choosing cost nothing: no trial was trained on the users’ data."
    return f"ε = {f.epsilon(record.epsilon)} is that of the whole search, whichever trial had won."


def _sentences(record: RunRecord, predicted: bool) -> Iterator[str]:
    sweep = record.sweep
    winner = number(block(sweep, "winner").get("score"))
    if predicted:
        compared = number(sweep.get("compared"))
        many = f"{f.whole(compared)} candidates" if compared is not None else "Candidates"
        yield (
            f"{many} were compared by the {_objective(sweep, predicted)} that accounting predicts of them, which "
            f"follows from public constants alone, and only the best was trained; its own is {f.significant(winner)}. "
            "It says how much noise there is in the updates, not how well a model learns: learning rates, say, it "
            "can’t tell apart."
        )
        return
    fixed = block(sweep, "trials").get("law") == "fixed"
    chosen = "greatest" if _mode(sweep) == "max" else "least"
    told = sweep.get("in_words")
    if isinstance(told, str) and told:
        best = told if told.startswith("the best of ") else f"the best of {told}"
        score = "" if winner is None else f"; it came to {f.significant(winner, 4)}"
        yield f"This model is {best}, by the {chosen} {_objective(sweep, predicted)}{score}."
    if not is_charged(record):
        if sweep.get("proxy") is True:
            yield (
                "All trials were trained on a public data set, so that they cost nothing; with the best one’s values "
                "this model was trained on the users’ data."
            )
        return
    if fixed:
        yield "Later trials could follow what earlier ones had shown, so that all of them are charged."
    else:
        yield (
            "Every trial drew its values from the priors below, independently of all others, and was held to the same "
            "price, so that ε does not depend on which of them won. This trial by itself would have cost less; that is "
            "not what is claimed."
        )
    if _is_public(record):
        told = "The data are declared public, so all trials are shown; of private data the winner alone would be."
        yield told if fixed else f"{told} To show them gives away what this ε rests on: how many there were."
    elif fixed:
        yield "Their number is public, as it stands in the spec; since every one is charged, all of them may be shown."
    else:
        yield (
            "How many trials there were, and what became of the others, stays private: the price holds only as long as "
            "nobody learns it. So nothing on this page, or in any released file, tells."
        )


def _caution(record: RunRecord) -> str:
    text = "trains with the winner’s values again, as one run without a search: spec.yaml in this folder holds them."
    if not record.private:
        return text
    text += " A second run is charged again, in full, on top of this one"
    if is_charged(record):
        text += "; by itself it needs less noise for the same ε, so it won’t be the same model"
    return f"{text}."


def _objective(sweep: Mapping[str, Any], predicted: bool) -> str:
    if predicted:
        by = block(sweep, "search").get("by")
        return _RANKED.get(str(by), _RANKED["worst"])
    found = block(sweep, "select").get("metric")
    return found if isinstance(found, str) and found else LOSS


def _mode(sweep: Mapping[str, Any]) -> str:
    return "max" if block(sweep, "select").get("mode") == "max" else "min"


def _space_rows(space: Mapping[str, Mapping[str, Any]], winner: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for key, prior in space.items():
        when = [f"{other} is {_one_of(value)}" for other, value in block(prior, "when").items()]
        yield {
            "key": key,
            "prior": _prior(prior),
            "when": f"only where {' and '.join(when)}" if when else "",
            "winner": shown(winner[key]) if key in winner else "not set",
        }


def _prior(prior: Mapping[str, Any]) -> str:
    for law, words in (("loguniform", "log-uniform, "), ("uniform", "uniform, "), ("int", "whole number, ")):
        ends = prior.get(law)
        if isinstance(ends, list) and len(ends) == 2:
            return f"{words}{shown(ends[0])} to {shown(ends[1])}"
    for law in ("choice", "grid"):
        if isinstance(prior.get(law), list):
            return f"{'every one' if law == 'grid' else 'one'} of {_one_of(prior[law])}"
    return f.MISSING


def _one_of(value: object) -> str:
    found = [shown(one) for one in value] if isinstance(value, list) else [shown(value)]
    return ", ".join(found[:OPEN]) + (f" … ({len(found)} in all)" if len(found) > OPEN else "")


# --- what it costs --------------------------------------------------------------------------------------------


def _prices(sweep: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = [
        (str(price.get("name") or f.MISSING), number(price.get("noise_multiplier")), price.get("own") is True)
        for price in items(sweep, "prices")
    ]
    if not rows:
        return None
    return {
        "rows": [
            {"name": name, "value": "no noise is enough" if v is None else f.significant(v, 4, padded=True), "own": own}
            for name, v, own in rows
        ],
        "chart": drawings.price_chart(rows),
    }


def _recomputed(record: RunRecord) -> dict[str, Any] | None:
    """The curves that trials were held under, and how to compute ε of them again."""
    search, claimed = block(record.privacy, "search"), block(record.sweep, "claimed")
    orders, curves = _numbers(search.get("orders")), search.get("curves")
    delta, mean = number(record.privacy.get("delta")), number(search.get("mean"))
    groups = [str(group.get("name", f.MISSING)) for group in items(record.privacy, "groups")]
    if not orders or not isinstance(curves, list) or len(curves) != len(groups) or delta is None or mean is None:
        return None
    known = [_numbers(curve) for curve in curves]
    if any(len(curve) != len(orders) for curve in known) or any(order is None for order in orders):
        return None
    held: dict[tuple[float | None, ...], list[str]] = {}
    for name, curve in zip(groups, known, strict=True):
        held.setdefault(tuple(curve), []).append(name)
    heads = [", ".join(names) for names in held.values()]
    return {
        "heads": heads,
        "rows": [
            [f.significant(order), *("any" if curve[i] is None else f.significant(curve[i], 5) for curve in held)]
            for i, order in enumerate(orders)
        ],
        "claims": [
            f.epsilon(max((c for n in names if (c := number(claimed.get(n))) is not None), default=None))
            for names in held.values()
        ],
        "code": _code(search, orders, list(held), mean, delta),
    }


def _code(
    search: Mapping[str, Any],
    orders: Sequence[float | None],
    curves: Sequence[Sequence[float | None]],
    mean: float,
    delta: float,
) -> str:
    """Python that prints ε of the whole search, from nothing but the numbers that are published."""
    shape = number(search.get("shape"))
    law = "".join(c for c in str(search.get("law")) if c.isalpha() or c == "_")
    more = "" if shape is None else f", {shape!r}"
    lines = [
        "from math import inf",
        "from harness.privacy.search import Searched, Trials",
        f"search = Searched(Trials({law!r}, {mean!r}{more}), rate=1.0, steps=1, orders={_written(orders)})",
    ]
    return "\n".join([*lines, *(f"print(search.price({_written(curve)}, {delta!r}))" for curve in curves)])


def _written(values: Sequence[float | None]) -> str:
    return "(" + " ".join(f"{'inf' if v is None else repr(v)}," for v in values) + ")"


def _numbers(value: object) -> list[float | None]:
    """A list of numbers, in which null is infinity; empty where it is none."""
    return [number(one) for one in value] if isinstance(value, list) else []


# --- trial by trial -------------------------------------------------------------------------------------------


def _trials(record: RunRecord, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """All trials of a search that may show them, sorted; None of any other."""
    sweep = record.sweep
    if not _may_show_trials(record) or not isinstance(sweep.get("shown"), list):
        return None
    winner = block(sweep, "winner")
    found: list[Trial] = []
    for entry in items(sweep, "shown"):
        values, score, status = block(entry, "candidate"), number(entry.get("score")), str(entry.get("status"))
        # Two trials may have drawn the same values: the first one won.
        best = (
            status == "finished"
            and not any(t.best for t in found)
            and (values, score) == (block(winner, "candidate"), number(winner.get("score")))
        )
        found.append(Trial(values, score, status, str(entry.get("reason") or ""), best))
    if not found:
        return None
    sign = -1.0 if _mode(sweep) == "max" else 1.0
    places = {"finished": 0, "stopped": 1}
    found.sort(key=lambda t: (not t.best, places.get(t.status, 2), math.inf if t.score is None else sign * t.score))
    objective = _objective(sweep, predicted=False)
    laid = _laid_out(found, space, objective, "trial")
    counts = [(status, sum(t.status == status for t in found)) for status in dict.fromkeys(t.status for t in found)]
    laid["caption"] = f"{len(found)} trials: " + ", ".join(f"{count} {status}" for status, count in counts) + "."
    scored = [t for t in found[:MOST] if t.score is not None]
    worst = [_largest_target(t, record, space) for t in scored]
    laid["pareto"] = drawings.pareto(scored, worst, objective, _mode(sweep), "largest ε target of any group")
    return laid


def _ranking(sweep: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The best candidates by predicted noise."""
    by = block(sweep, "search").get("by")
    by = by if isinstance(by, str) and by in _RANKED else "worst"
    winner = block(block(sweep, "winner"), "candidate")
    found: list[Trial] = []
    for entry in items(sweep, "candidates"):
        values, reason = block(entry, "candidate"), str(entry.get("reason") or "")
        score = None if reason else number(entry.get(by))
        best = not any(t.best for t in found) and values == winner
        found.append(Trial(values, score, "left out" if score is None else "", reason, best))
    if not found:
        return None
    laid = _laid_out(found, space, _RANKED[by], "candidate")
    compared, exact = number(sweep.get("compared")), number(sweep.get("exact"))
    few = compared is not None and compared > len(found)
    told = f"The best {len(found)} of {f.whole(compared)} candidates." if few else f"{len(found)} candidates."
    if exact is not None and exact < len(found):
        told += f" The first {f.whole(exact)} are computed in full, the others by a quicker bound that is a bit higher."
    laid["caption"] = told
    laid["pareto"] = None
    return laid


def _laid_out(
    trials: Sequence[Trial], space: Mapping[str, Mapping[str, Any]], objective: str, names: str
) -> dict[str, Any]:
    """Table and charts of trials or candidates, which are sorted."""
    listed = trials[:MOST]
    scored = [t for t in listed if t.score is not None]
    keys = list(dict.fromkeys([*space, *(str(key) for t in listed for key in t.values)]))
    rows = [
        {
            "place": str(place),
            "cells": [shown(t.values[key]) if key in t.values else f.MISSING for key in keys],
            "score": f.significant(t.score, 4, padded=True),
            "note": "best ✓" if t.best else ": ".join(part for part in (t.status, t.reason) if part),
            "best": t.best,
        }
        for place, t in enumerate(listed, start=1)
    ]
    return {
        "objective": objective,
        "heads": keys,
        "rows": rows[:OPEN],
        "more": rows[OPEN:],
        "left_out": len(trials) - len(listed),
        "multiples": drawings.multiples(scored, space, objective, names),
        "parallel": drawings.coordinates(scored, space, objective, f"{names}-all"),
        "stopped": any(t.status == "stopped" for t in scored),
    }


def _largest_target(trial: Trial, record: RunRecord, space: Mapping[str, Any]) -> float | None:
    """The largest ε target that a trial gives a group: what it sets, and of other groups what the spec says."""
    prefix = "noise.epsilon"
    written = block(block(record.spec, "noise"), "epsilon")
    targets = {f"{prefix}.{name}": value for name, value in written.items() if f"{prefix}.{name}" not in space}
    for key, value in trial.values.items():
        if key == prefix and isinstance(value, Mapping):
            targets = {f"{prefix}.{name}": inner for name, inner in value.items()}
        elif str(key).startswith(f"{prefix}."):
            targets[str(key)] = value
    known = [target for value in targets.values() if (target := number(value)) is not None]
    return max(known, default=None)
