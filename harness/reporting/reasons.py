"""Why each group has the noise it has: a few sentences, from the numbers of a plan and nothing else.

A plan is public. So is what is said here: never who is in a group, nor how many are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.reporting import formatting as f
from harness.reporting.records import block, items, number

Group = Mapping[str, Any]
_FRACTIONS = {
    1 / 2: "half",
    1 / 3: "a third of",
    1 / 4: "a quarter of",
    2 / 3: "two thirds of",
    3 / 4: "three quarters of",
}
_ALIKE = 1e-3


def explained(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's document with a ``reason`` in each of its groups."""
    groups = [{**group, "reason": group_reason(group, plan)} for group in items(plan, "groups")]
    return {**plan, "groups": groups}


def group_reason(group: Group, plan: Mapping[str, Any]) -> str:
    """Why a group has the noise it has.

    Args:
        group: A group of the plan.
        plan: The plan's document, with `group` among its groups.
    """
    multiplier = number(group.get("noise_multiplier"))
    if multiplier is None:
        return "The plan states no noise for this group."
    if multiplier <= 0:
        return "No noise is added, so nothing bounds what the model reveals about these users."
    groups = items(plan, "groups") or [group]
    loosest = max(groups, key=_looseness)
    by_example = block(plan, "sampling").get("unit") == "example"
    parts = [_target(group, groups, loosest, claimed=plan.get("claimed_by_group") is not False), *_risk(group, plan)]
    parts += [_influence(group, groups, loosest, by_example), _noise(group, groups, loosest, by_example)]
    return " ".join([*parts, *_moves(plan)])


def _looseness(group: Group) -> float:
    """By its target; a plan without targets is compared by what they lead to."""
    target = _epsilon(group)
    return target if target is not None else -(number(group.get("noise_multiplier")) or math.inf)


def _epsilon(group: Group) -> float | None:
    target = number(group.get("target_epsilon"))
    return target if target is not None else number(group.get("epsilon"))


def _alike(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=_ALIKE))


def _all_alike(groups: list[Group], key: str) -> bool:
    return all(_alike(number(g.get(key)), number(groups[0].get(key))) for g in groups)


def _target(group: Group, groups: list[Group], loosest: Group, *, claimed: bool) -> str:
    """What is promised, beside the others; or, where groups are learnt, only aimed at."""
    epsilon, highest = _epsilon(group), _epsilon(loosest)
    if not claimed and epsilon is not None:
        return (
            f"Its levers aim at ε = {f.significant(epsilon)}. Who is in it follows from noisy answers, so nobody is "
            "promised that: what holds for everybody is the ε of the whole run."
        )
    promised = "Protected" if epsilon is None else f"At most ε = {f.significant(epsilon)}"
    if len(groups) == 1:
        return f"{promised}, with one protection for everybody."
    if epsilon is None or highest is None or all(_alike(_epsilon(g), epsilon) for g in groups):
        return f"{promised}, as every other group."
    if _alike(epsilon, highest):
        return f"{promised}, the loosest target."
    share = epsilon / highest
    words = next((words for value, words in _FRACTIONS.items() if _alike(value, share)), f"{f.percent(share)} of")
    return f"{promised}, {words} the loosest group’s."


def _risk(group: Group, plan: Mapping[str, Any]) -> Iterator[str]:
    """Of `risk_proportional`: where the target comes from, by constants of the spec."""
    spec = block(plan, "spec")
    noise, budget = block(spec, "noise"), number(block(spec, "privacy").get("epsilon"))
    risks, strength = block(noise, "risk"), number(noise.get("strength"))
    if noise.get("type") != "risk_proportional" or strength is None or budget is None:
        return
    keys = (f"{group.get('segment')}/{group.get('tier')}", group.get("segment"), group.get("tier"))
    risk = next((found for key in keys if (found := number(risks.get(str(key)))) is not None), None)
    if risk is not None:
        numbers = f"{f.significant(budget)} / (1 + {f.significant(strength)} × {f.significant(risk)})"
        yield f"The spec puts its risk at {f.significant(risk)} of 1, and {numbers} is that ε."


def _influence(group: Group, groups: list[Group], loosest: Group, by_example: bool) -> str:
    """What one unit of the group can do, and how often: every lever, beside the loosest group's."""
    alone = len(groups) == 1 or group is loosest
    clauses = [_drawn(group, groups, loosest, by_example, alone)]
    if by_example:
        kept, most = number(group.get("examples_per_user")), number(loosest.get("examples_per_user"))
        if kept is not None:
            place = "" if alone or most is None or kept == most else f" in place of {f.whole(most)}"
            clauses.append(
                f"each keeps at most {f.whole(kept)} of their examples{place}, chosen once for the whole run"
            )
    clip, reference = number(group.get("clip_norm")), number(loosest.get("clip_norm"))
    if clip is not None:
        place = ", as everybody’s" if len(groups) > 1 and _all_alike(groups, "clip_norm") else ""
        if not alone and reference is not None and not _alike(clip, reference):
            place = f" in place of {f.significant(reference)}"
        what = "one example" if by_example else "one of them"
        clauses.append(f"what {what} contributes is clipped at {f.significant(clip)}{place}")
    text = ", ".join([*clauses[:-1], f"and {clauses[-1]}"]) if len(clauses) > 2 else ", and ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}.{_present(group, groups)}"


def _drawn(group: Group, groups: list[Group], loosest: Group, by_example: bool, alone: bool) -> str:
    rate, reference = number(group.get("sampling_rate")), number(loosest.get("sampling_rate"))
    who = "the kept examples of its users" if by_example else "its users"
    if rate is None or reference is None:
        return f"{who} are drawn at random"
    chance = f"with probability {f.rate(rate)} in a step"
    if len(groups) > 1 and _all_alike(groups, "sampling_rate"):
        return (
            f"{who} are drawn as often as everybody’s" if by_example else f"{who} are drawn as often as everybody else"
        )
    if alone or _alike(rate, reference):
        return f"{who} are drawn {chance}"
    much = f"{f.percent(1 - rate / reference)} less" if rate < reference else f"{f.percent(rate / reference - 1)} more"
    return (
        f"{who} are drawn {much} often than those of “{loosest.get('name')}”, {chance} in place of {f.rate(reference)}"
    )


def _present(group: Group, groups: list[Group]) -> str:
    """In how many steps, where that differs."""
    steps, most = number(group.get("steps")), max(number(g.get("steps")) or 0.0 for g in groups)
    if steps is None or _all_alike(groups, "steps"):
        return ""
    if steps >= most:
        return f" The group takes part in all {f.whole(most)} steps."
    return (
        f" The group takes part in {f.whole(steps)} of {f.whole(most)} steps, spread evenly and publicly known; in the "
        "others none of its users is drawn."
    )


def _noise(group: Group, groups: list[Group], loosest: Group, by_example: bool) -> str:
    """The noise, beside what it has to cover."""
    multiplier, reference = number(group.get("noise_multiplier")) or 0.0, number(loosest.get("noise_multiplier"))
    unit = "example" if by_example else "user"
    times = f.significant(multiplier, 2, padded=True)
    size = f"Relative to that, the noise is {times} times the most that one {unit} can move a step’s sum"
    if len(groups) == 1 or reference is None or not reference > 0 or group is loosest:
        return f"{size}."
    if _alike(multiplier, reference):
        same = _all_alike(groups, "noise_multiplier")
        return f"{size}, as in every group." if same else f"{size}, as in “{loosest.get('name')}”."
    return (
        f"{size}, {f.significant(multiplier / reference, 2, padded=True)} times what it is for “{loosest.get('name')}”."
    )


def _moves(plan: Mapping[str, Any]) -> Iterator[str]:
    """What changes during the run, or is not known yet."""
    schedule = items(plan, "schedule")
    for key, noun, verbs in (("noise", "the noise", ("falls", "rises")), ("clip", "clip norms", ("fall", "rise"))):
        last = number(schedule[-1].get(key)) if schedule else None
        if last is not None and not _alike(last, 1.0):
            yield (
                f"These are the first step’s numbers: by a public schedule, {noun} {verbs[last > 1]} to "
                f"{f.significant(last, 2)} times that at the end, and every step is accounted at its own."
            )
    if block(plan, "clipping").get("type") == "adaptive":
        yield (
            "These are the first step’s numbers: all clip norms follow one noisy count, and the noise follows them, so "
            "that the ratio stays."
        )
    if plan.get("pending"):
        what = "its" if plan.get("claimed_by_group") is not False else "the run’s"
        yield f"Some of it waits for noisy answers, which can’t raise {what} ε."
