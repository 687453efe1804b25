"""Documents of made audits: the tests of ε as the one-run audit computes them, the other attacks with made numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from harness.auditing.one_run import Test, usable_guesses, verdict
from harness.auditing.user_inference import compare_groups
from harness.privacy.guesses import ceiling, epsilon_bound
from tests.reporting.conftest import EPSILONS, NAMES, SPEC, made_metrics, made_plan, made_privacy, write_run

DELTA = 1e-5
CONFIDENCE = 0.95
SCORES = (
    ("gradient", "likelihood ratio"), ("gradient", "likelihood ratio at the noise seen"),
    ("gradient", "spread over steps"), ("text", "log ratio"),
)  # fmt: skip
CLAIMS: dict[str | None, float] = {None: max(EPSILONS), **dict(zip(NAMES, EPSILONS, strict=True))}
AUC = 0.6382
"""Nobody's number: no report on private data may show it."""


def one_run(canaries: int, shares: dict[str | None, float]) -> list[Test]:
    """Tests of every score over all groups and within each.

    Args:
        canaries: Of each kind, over all groups.
        shares: Of right guesses, by group (None: all); of groups that are not named, half.
    """
    each = 1 - (1 - CONFIDENCE) / (len(SCORES) * len(CLAIMS))
    found = []
    for place, (kind, score) in enumerate(SCORES):
        for group in CLAIMS:
            m = canaries if group is None else canaries // len(NAMES)
            r = usable_guesses(None, m)
            # The first score finds most.
            v = round(r * (shares.get(group, 0.5) if place == 0 else 0.5 + 0.01 * place))
            bounds = epsilon_bound(m, r, v, DELTA, each), ceiling(m, r, DELTA, each)
            found.append(Test(kind, score, group, m, r, v, *bounds, each))
    return found


def user_inference() -> dict[str, Any]:
    """Of 200 trained and 120 held-out users."""
    generator = np.random.default_rng(3)
    members, others = generator.normal(0.25, 1, 200), generator.normal(0, 1, 120)
    groups = [np.repeat([0, 1, 2], counts).astype(np.int64) for counts in ([120, 60, 20], [75, 38, 7])]
    found = compare_groups(members, groups[0], others, groups[1], NAMES, CONFIDENCE, 1).document()
    found["overall"]["auc"] = AUC
    return {**found, "fresh": True}


EXTRACTION: dict[str, Any] = {
    "planted": {
        "secrets": 11, "exposure": 2.3141, "exposure_interval": [1.2213, 3.4069], "base_exposure": 1.1873,
        "greedy": 0.0, "greedy_interval": [0.0, 0.2849], "sampled": 0.0909, "sampled_interval": [0.0023, 0.4128],
    },
    "left_out": {
        "secrets": 9, "exposure": 1.3921, "exposure_interval": [-0.1042, 2.8884], "base_exposure": 1.6102,
        "greedy": 0.0, "greedy_interval": [0.0, 0.3363], "sampled": 0.0, "sampled_interval": [0.0, 0.3363],
    },
    "samples": 10, "most_exposure": 9.9672, "confidence": CONFIDENCE,
}  # fmt: skip
RECONSTRUCTION: dict[str, Any] = {
    "looked_at": "linear layers",
    "shares": [
        {
            "cohort": cohort, "noise": noise, "noise_std": 0.3531 if noise else 0.0, "texts": 8, "found": found,
            "interval": [max(0.0, found - 0.09), min(1.0, found + 0.09)], "chance": chance, "frequent": frequent,
        }
        for cohort, chance, frequent, pair in (
            (1, 0.0002, 0.1134, (0.9688, 0.0521)), (4, 0.0008, 0.2841, (0.7141, 0.0833)),
            (16, 0.0029, 0.4417, (0.4021, 0.1142)),
        )
        for noise, found in zip((False, True), pair, strict=True)
    ],
    "reason": None, "confidence": CONFIDENCE,
}  # fmt: skip


def audit_document(canaries: int = 2400, shares: dict[str | None, float] | None = None) -> dict[str, Any]:
    """`audit.json` of a run on public data, as `harness.auditing.flow` writes it."""
    tests = one_run(canaries, shares or {None: 0.61, "few": 0.6, "some": 0.58, "many": 0.55})
    told = [t.document() | {"claimed": CLAIMS[t.group], "verdict": verdict([t], CLAIMS[t.group])} for t in tests]
    each = {entry["verdict"] for entry in told}
    worst = next(v for v in ("violated", "consistent", "inconclusive") if v in each)
    planted = [("gradient", canaries // 3), ("text", canaries // 3), ("secret", 7)]
    return {
        "version": 1,
        "claimed": {"epsilon": CLAIMS[None], "delta": DELTA, "groups": {n: CLAIMS[n] for n in NAMES}},
        "confidence": CONFIDENCE,
        "planted": [{"kind": kind, "group": name, "count": n} for kind, n in planted for name in NAMES],
        "one_run": told,
        "verdict": worst,
        "user_inference": user_inference(),
        "extraction": json.loads(json.dumps(EXTRACTION)),
        "reconstruction": json.loads(json.dumps(RECONSTRUCTION)),
    }


def consistent() -> dict[str, Any]:
    """Nothing above the claims; of the loosest groups nothing could have been found."""
    return audit_document()


def violated() -> dict[str, Any]:
    """Users of "many" are promised 2.00, and lose more."""
    return audit_document(shares={None: 0.72, "few": 0.7, "some": 0.69, "many": 0.97})


def inconclusive() -> dict[str, Any]:
    """As many canaries as say nothing."""
    return audit_document(canaries=60, shares={None: 0.6})


def of_private_data() -> dict[str, Any]:
    """As it is written where data are private."""
    return consistent() | {"user_inference": {"private": True}}


SAMPLES = {
    "samples": [
        {
            "prompt": "To be, or",
            "base": " even a lie, is a concept that has been debated and analyzed throughout history. In essence, the",
            "tuned": " it will be, or we will not be.\nO, my good lord, I have not slept this night,\nNor will I.",
        },
        {"prompt": "My lord, I", "base": " have said it, for we were one and the same.", "tuned": ""},
    ],
    "temperature": 0.7,
    "tokens": 32,
}


def audited_run(
    folder: Path, document: dict[str, Any], samples: dict[str, Any] | None = None, visibility: str = "public"
) -> Path:
    """A run's folder with an audit and samples, and a private part that no report may look into."""
    privacy = made_privacy()
    privacy["data"] = {"name": "mails", "visibility": visibility}
    spec = SPEC | {"data": SPEC["data"] | {"visibility": visibility}}
    made = write_run(folder, made_plan(), privacy, made_metrics(), spec)
    (made / "audit.json").write_text(json.dumps(document), encoding="utf-8")
    (made / "samples.json").write_text(json.dumps(SAMPLES if samples is None else samples), encoding="utf-8")
    (made / "private" / "audit.json").write_text(json.dumps({"user_inference": user_inference()}), encoding="utf-8")
    return made
