"""What attacks measured of a run, as the report's chapter shows it: verdict, tests of ε, and what each attack found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.reporting import attack_charts as drawings
from harness.reporting import formatting as f
from harness.reporting.attack_charts import Measured, measured, positive
from harness.reporting.audited import KINDS, Audited, EpsilonTest, audited, failed
from harness.reporting.records import RunRecord, block, items, number

_SCORES = {
    "likelihood ratio": "by the likelihood ratio of all releases, at the noise that is claimed",
    "likelihood ratio at the noise seen": "by the same at the noise that each release shows: finds steps with less",
    "spread over steps": "by their spread over the steps: finds noise that repeats",
    "log ratio": "by how much likelier training made their text",
}
_HOLD = {
    "gradient": "hold a direction of their own in place of a gradient, and are looked for in every release",
    "text": "hold random words, and are looked for in the trained model",
    "secret": "hold a secret code in their texts",
}
_GUESS = 1.44
"""Mean exposure of a code that the model knows nothing of, bits: 1 / ln 2."""


def attacks(record: RunRecord) -> dict[str, Any] | None:
    """What the template shows of `audit.json`; None where the run was not audited."""
    found = audited(record)
    if found is None:
        return None
    refuted = failed(found)
    return {
        "alarm": None if refuted is None else _alarm(refuted, found),
        "verdict": found.verdict,
        "lead": _lead(found) if refuted is None else f"The claim is refuted: {refuted}",
        "sentences": list(_sentences(found)),
        "canaries": _canaries(found),
        "chart": drawings.epsilon_chart(found, record),
        "kinds": [KINDS[k] for k in drawings.lanes(found)],
        "confidence": _confidence(found),
        "claims": found.claims_something,
        "count": len(found.tests),
        "tests": _by_score(found.tests),
        "inference": _inference(record),
        "extraction": _extraction(block(record.audit, "extraction")),
        "reconstruction": _reconstruction(block(record.audit, "reconstruction")),
    }


# --- the verdict ----------------------------------------------------------------------------------------------


def _alarm(refuted: str, found: Audited) -> str:
    sure = "" if found.confidence is None else f" This holds with {f.confidence(found.confidence)} confidence."
    return (
        f"{refuted}{sure} The mechanism is not what was accounted: treat the model as unprotected, and do not rely on "
        "the ε below."
    )


def _lead(found: Audited) -> str:
    if found.verdict is None:
        return "No lower bound on ε was measured: the spec asks for other attacks alone."
    if not found.claims_something:
        return "Nothing is claimed, so no test can refute it; what is measured holds all the same."
    if found.verdict == "consistent":
        silent = _silent(found)
        told = [group for group in dict.fromkeys(t.group for t in found.tests) if group not in silent]
        where = f" about {_about(told)}" if silent else ""
        return f"Nothing was found above what is claimed, and more could have been found{where}."
    if any(test.verdict == "consistent" for test in found.tests):
        return "Inconclusive: audit.json does not say that its tests could have found a violation."
    return (
        "Inconclusive: no test could have found a violation. Even with every guess right, each would have shown less "
        "than the ε that is claimed."
    )


def _sentences(found: Audited) -> Iterator[str]:
    known = [t for t in found.tests if t.bound is not None]
    if not known:
        return
    best = max(known, key=lambda t: t.bound or 0.0)
    if best.bound:
        yield (
            f"The largest lower bound of a test is ε ≥ {f.at_least(best.bound)}, for {best.whose}{_claim(best)}: "
            f"{f.whole(best.correct)} of {f.whole(best.guesses)} guesses about {_name(best.kind)} canaries were right."
        )
    else:
        yield "No test gives a lower bound above 0: the guesses were no better than a coin, or too few."
    aimed = [t for t in known if t.ceiling is not None and t.claimed is not None]
    if aimed:
        sharpest = max(aimed, key=lambda t: (t.ceiling or 0.0) / max(t.claimed or 0.0, 1e-9))
        yield (
            f"With every guess right, the sharpest test would have shown ε ≥ {f.at_least(sharpest.ceiling)} for "
            f"{sharpest.whose}{_claim(sharpest)}."
        )
    if found.verdict == "consistent":
        if silent := _silent(found):
            yield (
                f"About {_about(silent)} no test could have found a violation: every ceiling lies below what is "
                "claimed for them."
            )
        yield "A better attack may find more: this is no proof of the claim."
    elif found.verdict == "inconclusive" and found.claims_something:
        yield "That nothing was found says nothing about the claim; more canaries and guesses raise the ceilings."


def _silent(found: Audited) -> list[str | None]:
    """Groups about which no test could have found anything; None: all users."""
    by_group: dict[str | None, list[EpsilonTest]] = {}
    for test in found.tests:
        by_group.setdefault(test.group, []).append(test)
    return [group for group, tests in by_group.items() if all(t.verdict == "inconclusive" for t in tests)]


def _about(groups: Sequence[str | None]) -> str:
    """Whom a sentence is about."""
    named = [f"“{group}”" for group in groups if group is not None]
    parts = ["all users together"] if None in groups else []
    return " and ".join([*parts, *([f"users of {_listed(named)}"] if named else [])])


def _claim(test: EpsilonTest) -> str:
    return "" if test.claimed is None else f", where {f.epsilon(test.claimed)} is claimed"


def _name(kind: str) -> str:
    return KINDS.get(kind, kind)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _canaries(found: Audited) -> str:
    """What was planted for the audit, and that it is in the model."""
    if not found.planted:
        return ""
    what = [f"{f.whole(n)} {_HOLD.get(kind, f'are of the kind “{kind}”')}" for kind, n in found.planted.items()]
    total = f.whole(sum(found.planted.values()))
    return (
        f"{total} made users (canaries), whom nobody is behind, were planted for this: {'; '.join(what)}. Each was in "
        "the training with probability ½, and those that were are in the model: it was trained on them with their "
        "group’s levers, like on anybody of that group."
    )


def _confidence(found: Audited) -> str:
    if found.confidence is None:
        return ""
    each = min(t.confidence for t in found.tests if t.confidence is not None)
    together = f.confidence(found.confidence)
    if len(found.tests) == 1:
        return f"The bound holds with {together} confidence."
    return (
        f"All {len(found.tests)} bounds hold together with {together} confidence; for that, each test by itself has "
        f"{f.confidence(each)} (Bonferroni). The number of guesses was fixed before anything was scored."
    )


def _by_score(tests: Sequence[EpsilonTest]) -> list[dict[str, Any]]:
    """The rows of the table: a part for each score, with a row for each group."""
    parts: dict[tuple[str, str], list[EpsilonTest]] = {}
    for test in tests:
        parts.setdefault((test.kind, test.score), []).append(test)
    return [
        {"title": f"{_name(kind)} canaries, {_SCORES.get(score, score)}", "rows": [_row(test) for test in own]}
        for (kind, score), own in parts.items()
    ]


def _row(test: EpsilonTest) -> dict[str, str]:
    return {
        "group": _whom(test.group),
        "canaries": f.whole(test.canaries),
        "guesses": f.whole(test.guesses),
        "correct": f.whole(test.correct),
        "bound": f.at_least(test.bound),
        "ceiling": f.at_least(test.ceiling),
        "claimed": f.epsilon(test.claimed),
        "verdict": test.verdict,
    }


# --- users ----------------------------------------------------------------------------------------------------


def _inference(record: RunRecord) -> dict[str, Any] | None:
    """Of real users: shown where their data are public by every word of the run's files, and nowhere else."""
    found = block(record.audit, "user_inference")
    if not found:
        return None
    if not _is_public(record) or found.get("private") is True or "overall" not in found:
        leaked = "overall" in found or "groups" in found
        return {"sentence": _not_shown(leaked), "leaked": leaked, "rows": [], "chart": None, "missing": ""}
    groups = {str(name): part for name, part in block(found, "groups").items() if isinstance(part, Mapping)}
    every: dict[str | None, Mapping[str, Any]] = {None: block(found, "overall")}
    if len(groups) > 1:
        every.update(groups)
    spots = {name: measured(part, "auc", "interval") for name, part in every.items()}
    every_rate = [positive(t.get("fpr")) for part in every.values() for t in items(part, "true_positives")]
    rates = [rate for rate in dict.fromkeys(every_rate) if rate is not None]
    return {
        "sentence": _told_apart(spots[None], found.get("fresh"), block(found, "overall")),
        "leaked": False,
        "chart": drawings.inference_chart(spots, record),
        "missing": "; ".join(f"{_whom(name)}: {_reason(every[name])}" for name, m in spots.items() if m is None),
        "heads": [f"found at {f.significant(100 * r)} % false alarms" for r in rates],
        "rows": [_user_row(_whom(name), part, rates) for name, part in every.items()],
        "confidence": _sure(block(found, "overall")),
    }


def _is_public(record: RunRecord) -> bool:
    declared = block(record.spec, "data").get("visibility", "public")
    return block(record.privacy, "data").get("visibility") == "public" and declared == "public"


def _not_shown(leaked: bool) -> str:
    if leaked:
        return (
            "audit.json holds statistics of real users, though their data are not public. They are not shown here; "
            "take them out before the run’s folder is shared."
        )
    return "This attack asks about real users. What it found is private, and lies in private/audit.json alone."


def _told_apart(found: Measured | None, fresh: object, overall: Mapping[str, Any]) -> str:
    texts = ""
    if isinstance(fresh, bool):
        texts = f" The attacker has texts of each user that the training {'left out' if fresh else 'may have used'}."
    if found is None:
        return f"Whether trained users can be told from held-out ones is not known: {_reason(overall)}."
    shown = f"{found.value:.3f}"
    shown += "" if found.interval is None else f", {found.interval[0]:.3f} to {found.interval[1]:.3f}"
    if found.interval is not None and found.interval[0] > 0.5:
        said = "Trained users can be told from held-out ones better than by a coin"
    elif found.interval is not None and found.interval[1] < 0.5:
        said = "Held-out users score higher than trained ones, which no leak explains: the two differ otherwise"
    else:
        said = "Trained users can’t be told from held-out ones: the interval holds 0.5, a coin"
    return f"{said} (AUC {shown}).{texts}"


def _user_row(name: str, part: Mapping[str, Any], rates: Sequence[float]) -> list[str]:
    auc = measured(part, "auc", "interval")
    at = {positive(entry.get("fpr")): entry for entry in items(part, "true_positives")}
    cells = [name, f.whole(positive(part.get("members"))), f.whole(positive(part.get("others")))]
    cells.append(_reason(part) if auc is None else f"{auc.value:.3f} {f.interval(auc.interval, '.3f')}".strip())
    for rate in rates:
        entry = at.get(rate, {})
        found = measured(entry, "tpr", "interval")
        cells.append(_share(found) if found is not None else _reason(entry))
    return cells


def _whom(group: str | None) -> str:
    return drawings.EVERYBODY if group is None else group


def _reason(part: Mapping[str, Any]) -> str:
    reason = part.get("reason")
    return reason if isinstance(reason, str) and reason else f.MISSING


def _sure(part: Mapping[str, Any]) -> str:
    """The confidence of a document's intervals."""
    known = number(part.get("confidence"))
    return f.confidence(known if known is not None and 0 < known < 1 else None)


def _share(found: Measured | None) -> str:
    """A share in percent with its interval."""
    if found is None:
        return f.MISSING
    ends = found.interval
    return f.percent(found.value) + ("" if ends is None else f" ({100 * ends[0]:.0f} to {100 * ends[1]:.0f} %)")


# --- secrets and words ----------------------------------------------------------------------------------------


def _extraction(found: Mapping[str, Any]) -> dict[str, Any] | None:
    parts = {
        name: block(found, key)
        for name, key in (("in the training", "planted"), ("left out", "left_out"))
        if block(found, key)
    }
    if not parts:
        return None
    exposures = {name: measured(part, "exposure", "exposure_interval") for name, part in parts.items()}
    draws = positive(found.get("samples"))
    rows = []
    for name, part in parts.items():
        exposure, base = exposures[name], positive(part.get("base_exposure"))
        bits = f.MISSING if exposure is None else f"{exposure.value:.2f} {f.interval(exposure.interval)}".strip()
        cells = [name, f.whole(positive(part.get("secrets"))), bits, f.MISSING if base is None else f"{base:.2f}"]
        cells.append(_share(measured(part, "greedy", "greedy_interval")))
        if draws:
            cells.append(_share(measured(part, "sampled", "sampled_interval")))
        rows.append(cells)
    heads = ["codes", "number", "exposure, bits", "of the base model", "likeliest continuation"]
    bases = {name: positive(part.get("base_exposure")) for name, part in parts.items()}
    return {
        "sentence": _stand_out(exposures.get("in the training"), exposures.get("left out")),
        "chart": drawings.exposure_chart(exposures, bases, positive(found.get("most_exposure")), _GUESS),
        "heads": [*heads, f"in {f.whole(draws)} drawn ones"] if draws else heads,
        "rows": rows,
        "most": f.significant(positive(found.get("most_exposure"))),
        "confidence": _sure(found),
    }


def _stand_out(planted: Measured | None, left: Measured | None) -> str:
    if planted is None or left is None:
        return "There is nothing to compare: of the codes, all were in the training or none."
    both = f"{planted.value:.2f} against {left.value:.2f} bits of exposure"
    if planted.interval is None or left.interval is None:
        return f"Codes that were in the training against those left out: {both}; too few for an interval."
    if planted.interval[0] > left.interval[1]:
        return f"The model gives planted codes away: those that were in the training stand out ({both})."
    return f"Codes that were in the training don’t clearly stand out from those that were left out ({both})."


def _reconstruction(found: Mapping[str, Any]) -> dict[str, Any] | None:
    if not found:
        return None
    shares = items(found, "shares")
    by_cohort: dict[float, dict[bool, Mapping[str, Any]]] = {}
    for share in shares:
        cohort = positive(share.get("cohort"))
        if cohort:
            by_cohort.setdefault(cohort, {})[share.get("noise") is True] = share
    if not by_cohort:
        reason = _reason(found)
        return None if reason == f.MISSING else {"sentence": f"This attack {reason}.", "chart": None, "rows": []}
    noisy = any(True in levels for levels in by_cohort.values())
    rows = []
    for cohort, levels in sorted(by_cohort.items()):
        found_of = {noise: measured(share, "found", "interval") for noise, share in levels.items()}
        one = next(iter(levels.values()))
        cells = [f.whole(cohort), f.whole(positive(one.get("texts"))), _share(found_of.get(False))]
        cells += [_share(found_of.get(True))] if noisy else []
        rows.append([*cells, f.percent(positive(one.get("frequent"))), f.percent(positive(one.get("chance")), 1)])
    heads = [
        "users",
        "texts",
        "without noise",
        *(["with the run’s noise"] if noisy else []),
        "frequent words",
        "chance",
    ]
    looked = found.get("looked_at")
    return {
        "sentence": _words_found(*min(by_cohort.items())),
        "chart": drawings.words_chart(by_cohort),
        "noisy": noisy,
        "heads": heads,
        "rows": rows,
        "looked_at": looked if isinstance(looked, str) else "",
        "confidence": _sure(found),
    }


def _words_found(cohort: float, levels: Mapping[bool, Mapping[str, Any]]) -> str:
    """Of the smallest cohort, in a sentence."""
    bare, noisy = (measured(levels.get(noise, {}), "found", "interval") for noise in (False, True))
    whose = "one user alone" if cohort == 1 else f"{f.whole(cohort)} users together"
    told = [f"{f.percent(m.value)} {words}" for m, words in ((bare, "without noise"), (noisy, "with the run’s")) if m]
    frequent = positive(next(iter(levels.values())).get("frequent"))
    named = "" if frequent is None else f"; naming the most frequent words finds {f.percent(frequent)}"
    return f"Of a user’s words, an update of {whose} gives away {' and '.join(told) or 'nothing known'}{named}."
