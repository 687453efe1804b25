"""Around runs that train all parameters: what plan, card, report, generate and export say and do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.reporting.model_card import model_card
from harness.spec import load_spec
from harness.training import inference
from harness.training.model import Base
from tests.plans import write_spec
from tests.tiny import save_base

FULL = {"adapter": {"type": "full"}}


def notes(folder: Path, **changes: Any) -> str:
    changes = {"model": {"base": "tiny-model", **FULL}, **changes}
    return "\n".join(make_plan(load_spec(write_spec(folder, **changes))).notes())


@pytest.mark.parametrize(
    ("sampling", "budget", "cut"),
    [
        ({"examples_per_user": 4}, 512, False),
        ({"examples_per_user": 4}, 511, True),
        ({"examples_per_user": 4, "unit": "example"}, 128, False),
        ({"examples_per_user": 4, "unit": "example"}, 127, True),
    ],
)
def test_the_plan_says_whether_gradients_are_held(
    tmp_path: Path, sampling: dict[str, Any], budget: int, cut: bool
) -> None:
    """By public bounds: examples × max_tokens against a micro-batch."""
    found = notes(tmp_path, sampling={"expected": 20, **sampling}, compute={"microbatch_tokens": budget})
    assert "All parameters are trained" in found
    assert ("is held whole for its norm" in found) == cut
    assert ("fit into one micro-batch" in found) != cut


def test_the_plan_of_an_adapter_says_nothing_of_it(tmp_path: Path) -> None:
    assert "All parameters" not in notes(tmp_path, model={"base": "tiny-model"})


def test_the_document_names_what_is_trained(tmp_path: Path) -> None:
    document = make_plan(load_spec(write_spec(tmp_path, model={"base": "tiny-model", **FULL}))).document()
    assert document["model"] == {"base": "tiny-model", "adapter": {"type": "full"}, "dtype": "float32"}


def test_a_model_is_copied_and_generates(tmp_path: Path) -> None:
    """What a run made is what is read, whatever became of its base."""
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    model = save_base(run / "model", seed=5, tied=True)
    plan = {"name": "tiny", "model": {"base": "gone", **FULL, "dtype": "float32"}, "versions": {}}
    (run / "plan.json").write_text(json.dumps(plan))
    base = inference.base_of(run, tmp_path / "cache")
    assert base == Base(model, "what the run made")
    text = inference.generate(run, base, "tide", tokens=4, temperature=0)
    assert text == inference.generate(run, base, "tide", tokens=4, temperature=0)
    with pytest.raises(
        ArgumentError, match=r"the model holds [0-9]+ tokens; the prompt has [0-9]+, and --tokens asks for 100000 more"
    ):
        inference.generate(run, base, "tide", tokens=100_000, temperature=0)
    inference.merge(run, base, tmp_path / "copy", "the card")
    assert (tmp_path / "copy" / "README.md").read_text() == "the card"
    one, other = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (model, tmp_path / "copy"))
    assert all((one[name] == other[name]).all() for name in one)


def test_the_card_is_of_a_whole_model(tmp_path: Path) -> None:
    from tests.reporting.conftest import made_plan, made_privacy

    plan = made_plan()
    plan["model"] |= FULL
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "privacy.json").write_text(json.dumps(made_privacy()))
    card = model_card(tmp_path)
    assert "All parameters of `HuggingFaceTB/SmolLM2-135M-Instruct`, trained with uudp" in card
    assert "peft" not in card
    assert "lora" not in card.lower()
    assert "AutoModelForCausalLM.from_pretrained('this folder')" in card
