"""Problems of what is sampled, and of counts that are noisy answers."""

from __future__ import annotations

from harness.plugins import Access
from harness.spec.draft import Draft
from harness.spec.merging import Merged
from harness.spec.problems import COMMAND_LINE, KeyPath


def check_sampling(draft: Draft) -> None:
    """Adds every problem of these to the draft."""
    _sampling(draft)
    _unit(draft)
    _noisy(draft)
    _learnt(draft)


def _sampling(draft: Draft) -> None:
    sampling, merged = draft.spec.sampling, draft.merged
    expected, rate = draft.written("sampling.expected"), draft.written("sampling.rate")
    if expected and rate:
        message = "give either sampling.expected or sampling.rate, not both" + _weaker(merged)
        merged.add(("sampling", "rate"), message, at_key=True)
    elif not (expected or rate) and merged.complete and draft.sure("sampling.expected", "sampling.rate"):
        merged.add(("sampling",), "one of expected and rate must be given", at_key=True)
    population, holdout = draft.spec.data.population, draft.spec.data.holdout.users
    sure = draft.sure("sampling.expected", "data.population", "data.holdout.users") and sampling.unit == "user"
    if sure and sampling.expected is not None and isinstance(population, int):
        training = population * (1 - holdout)
        if sampling.expected > training * (1 + 1e-9):
            merged.add(
                ("sampling", "expected"),
                f"{sampling.expected:g} users per step are more than the {training:g} users that train "
                f"(data.population {population}, less the hold-out)",
            )


def _unit(draft: Draft) -> None:
    """What is sampled, and what has to be known for it."""
    sampling, merged = draft.spec.sampling, draft.merged
    if not draft.sure("sampling"):
        return
    if sampling.unit == "auto" and sampling.rate is not None:
        merged.add(("sampling", "rate"), "with unit: auto, give expected: examples per step", at_key=True)
    if sampling.unit == "auto" and draft.written("sampling.examples_per_user") and sampling.examples_per_user != "auto":
        message = "unit: auto chooses it; leave it out, or say what the unit is"
        merged.add(("sampling", "examples_per_user"), message)
    chosen = sampling.unit == "auto" or (sampling.unit == "example" and sampling.examples_per_user == "auto")
    if chosen and sampling.rate is not None and sampling.unit == "example":
        message = "with examples_per_user: auto, give expected: a rate says nothing before the examples are known"
        merged.add(("sampling", "rate"), message, at_key=True)
    if chosen and draft.sure("data.population") and draft.spec.data.population == "noisy":
        merged.add(("data", "population"), "noisy does not go with sampling that auto chooses; declare the number")
    policy = draft.spec.noise.type
    if policy == "contribution" and sampling.unit != "example" and draft.sure("noise"):
        merged.add(("noise", "type"), "contribution needs sampling.unit: example (what users keep is its lever)")
    if policy == "schedule" and draft.spec.clipping.type == "adaptive" and draft.sure("noise", "clipping"):
        merged.add(("clipping", "type"), "adaptive does not go with noise.type: schedule; choose one of them")
    if policy == "none" and draft.spec.clipping.type == "adaptive" and draft.sure("noise", "clipping"):
        merged.add(("clipping", "type"), "adaptive needs noise; with noise.type: none give a norm")


def _noisy(draft: Draft) -> None:
    """Counts with noise: what can't depend on them."""
    data, merged = draft.spec.data, draft.merged
    if not draft.sure("data.population", "data.weights"):
        return
    private = draft.spec.noise.type != "none"
    for key, value in (("population", data.population), ("weights", data.weights)):
        if value == "noisy" and not private and draft.sure("noise"):
            merged.add(("data", key), "a run without noise promises nothing: there is nothing to charge")
    sampling = draft.spec.sampling
    chosen = sampling.unit == "auto" or (sampling.unit == "example" and sampling.examples_per_user == "auto")
    if data.population == "noisy" and draft.sure("sampling") and sampling.rate is None and not chosen:
        message = "noisy needs sampling.rate: a rate that follows from a noisy answer would change everybody's ε"
        merged.add(("data", "population"), message)
    if data.population == "noisy" and data.weights == "public" and draft.written("data.weights"):
        merged.add(("data", "weights"), "public, where the population is noisy; give them, or say noisy")
    if data.weights == "noisy" and draft.spec.noise.type in ("sample", "product") and draft.sure("noise"):
        message = f"noisy does not go with noise.type: {draft.spec.noise.type}, whose rates depend on them; give them"
        merged.add(("data", "weights"), message)


def _learnt(draft: Draft) -> None:
    """Without noise there is no ε that a noisy answer could be part of."""
    if draft.spec.noise.type != "none" or not draft.sure("noise"):
        return
    message = "{} noisy answers, and a run without noise promises nothing: there is nothing to charge"
    for block, plugin in draft.plugins.items():
        if getattr(plugin, "access", None) is Access.SESSION:
            draft.merged.add((*block, "type"), message.format("it learns from"))
    sensitivity = draft.spec.sensitivity
    if sensitivity is not None and sensitivity.tiers.quantiles is not None and draft.sure("sensitivity"):
        path: KeyPath = ("sensitivity", "tiers", "quantiles")
        draft.merged.add(path, message.format("the edges are"), at_key=True)


def _weaker(merged: Merged) -> str:
    """How to be rid of the one that stands in a weaker layer, and is probably no longer meant."""
    order = [layer.name for layer in merged.layers]
    by_strength = sorted(("expected", "rate"), key=lambda k: order.index(merged.place_of_key(("sampling", k)).file))
    weak, strong = (merged.place_of_key(("sampling", key)) for key in by_strength)
    if weak.file == strong.file:
        return ""
    takes = f"sampling.{by_strength[0]}=null" if strong == COMMAND_LINE else f"{by_strength[0]}: null"
    return f"; {takes} takes out that of {weak.file}"
