"""Documents of made searches: of private data, of public data, and one that trained nothing to choose."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tests.reporting.conftest import SPEC, made_metrics, made_plan, made_privacy, write_run

SPACE = {
    "clipping.norm": {"loguniform": [0.1, 2.0]},
    "noise.type": {"choice": ["scale", "sample", "product"]},
    "noise.share": {"uniform": [0.0, 1.0], "when": {"noise.type": "product"}},
}
PRICES = [
    {"name": "no search: one run", "noise_multiplier": 0.6800294733984175, "own": False},
    {"name": "random, geometric with mean 5", "noise_multiplier": 0.9208009104184346, "own": True},
    {"name": "random, logarithmic with mean 5", "noise_multiplier": 0.8796421247665046, "own": False},
    {"name": "random, poisson with mean 5", "noise_multiplier": None, "own": False},
    {"name": "5 trials, all charged (optuna, asha, a grid)", "noise_multiplier": 1.0272115717278656, "own": False},
]
# Of a real search: the price of these curves, at δ = 1e-5, is ε = 8.
SEARCH = {
    "law": "geometric", "mean": 5.0, "shape": None, "orders": [2.25, 3.75],
    "curves": [[0.5586698462954628, 1.9676666414859214]] * 2 + [[0.5586698462954628, None]],
}  # fmt: skip
LOSERS = (1.3715135108773508, 1.6566360138183442)
"""Clip norms of losing trials: nothing may show them where data are private."""


def sweep_document() -> dict[str, Any]:
    """`sweep.json` of a charged search over private data."""
    return {
        "space": copy.deepcopy(SPACE),
        "search": {"type": "random", "trials": {"law": "geometric", "mean": 5.0, "shape": None}},
        "select": {"metric": "eval/loss", "mode": "min"},
        "epsilon": 7.9931,
        "delta": 1e-05,
        "charged": True,
        "trials": {"law": "geometric", "mean": 5.0, "shape": None},
        "in_words": "the best of a secret random number of trials (geometric, mean 5)",
        "claimed": {"few": 8.0, "some": 8.0, "many": 8.0},
        "prices": copy.deepcopy(PRICES),
        "winner": {"candidate": {"clipping.norm": 0.2310782217, "noise.type": "scale"}, "score": 4.31809},
        "shown": None,
    }


def outcomes() -> list[dict[str, Any]]:
    """Fifteen trials: eleven that ended, two that were stopped, two that failed. The fourth won."""
    found = []
    for place in range(15):
        kind = ("scale", "sample", "product")[place % 3]
        candidate: dict[str, Any] = {"clipping.norm": round(0.1 * 20 ** ((place * 7 % 15) / 14), 6), "noise.type": kind}
        if kind == "product":
            candidate["noise.share"] = round(((place * 4) % 15) / 15, 4)
        score: float | None = 4.33 + 0.041 * (place * 11 % 15) / 3
        one: dict[str, Any] = {"place": place, "candidate": candidate, "status": "finished", "score": score}
        one["reason"] = ""
        if place in (5, 9):
            one |= {"status": "stopped"}
        if place in (7, 12):
            one |= {"status": "failed", "score": None, "reason": "its eval/loss is no finite number"}
        found.append(one)
    found[3] |= {"candidate": {"clipping.norm": 0.2310782217, "noise.type": "scale"}, "score": 4.31809}
    return found


def public_document() -> dict[str, Any]:
    """`sweep.json` of a charged search over public data."""
    return sweep_document() | {"shown": outcomes()}


def with_targets() -> dict[str, Any]:
    """The same where ε targets of two groups are searched too, and one key has many values."""
    document = public_document()
    document["space"] |= {
        "noise.epsilon.few": {"uniform": [4.0, 8.0]},
        "noise.epsilon.some": {"uniform": [1.0, 4.0]},
        "train.steps": {"choice": [f"schedule number {k}" for k in range(40)]},
    }
    for one in (*document["shown"], document["winner"]):
        place = one.get("place", 3)
        steps = f"schedule number {place * 11 % 40}"
        one["candidate"] |= {"noise.epsilon.few": 4 + place / 4, "noise.epsilon.some": 2.0, "train.steps": steps}
    return document


def predicted_document() -> dict[str, Any]:
    """`sweep.json` of a search by predicted noise."""
    document = sweep_document() | {"charged": False, "trials": None, "in_words": None, "claimed": {}, "prices": []}
    document["search"] = {"type": "predicted", "candidates": 1000, "by": "worst"}
    document["space"] = {"sampling.expected": {"choice": [32, 54, 96]}, "train.steps": {"int": [100, 4000]}}
    rows = [
        {
            "candidate": {"sampling.expected": (96, 54, 32)[i % 3], "train.steps": 4000 - 61 * i},
            "worst": 0.0112 * 1.045**i,
            "overall": 0.004 * 1.04**i,
            "mean": 0.005 * 1.04**i,
            "groups": {"few": 0.0112 * 1.045**i},
            "tokens": 9.6e6,
            "reason": "" if i < 48 else "trains on 4e+07 tokens, more than sweep.search.tokens",
        }
        for i in range(50)
    ]
    winner = {"candidate": rows[0]["candidate"], "score": rows[0]["worst"]}
    return document | {"winner": winner, "candidates": rows, "compared": 731, "exact": 10}


def searched_run(folder: Path, document: dict[str, Any], visibility: str = "private") -> Path:
    """A run's folder with a search's document, and a private part that no report may look into.

    Args:
        folder: To be made.
        document: Of `sweep.json`.
        visibility: Of the data.
    """
    plan, privacy = made_plan(), made_privacy()
    privacy["data"] = {"name": "mails", "visibility": visibility}
    if document["charged"]:
        privacy["search"] = copy.deepcopy(SEARCH)
    made = write_run(folder, plan, privacy, made_metrics(), SPEC)
    (made / "sweep.json").write_text(json.dumps(document), encoding="utf-8")
    trials = outcomes()
    for one, norm in zip(trials, LOSERS, strict=False):
        one["candidate"]["clipping.norm"] = norm
    (made / "private" / "trials.json").write_text(json.dumps({"trials": trials}), encoding="utf-8")
    return made
