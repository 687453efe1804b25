"""Examples that share a row: apart in every family that is allowed to, and refused in the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.training import packing
from harness.training.batches import pack_rows, summed_loss
from harness.training.ghost import _buckets, _sizes, _squared_norms
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.layout import Layout
from harness.training.packing import FAMILIES, keeps_apart
from tests.families import make_model
from tests.tiny import CHARACTERS, made_posts, make_mechanism, save_base
from tests.training import checks
from tests.training.reference import train_plainly

CPU = torch.device("cpu")
A, OTHER = [(7 * i + 3) % 120 for i in range(23)], [(5 * i + 60) % 120 for i in range(23)]
B = [(11 * i + 1) % 120 for i in range(17)]


def adapted(family: str, attention: str) -> tuple[Any, UnitGradients]:
    from peft import LoraConfig, get_peft_model

    target = {"gpt2": "c_proj", "gpt_neox": "query_key_value"}.get(family, "q_proj")
    model = make_model(family, attention)
    if family == "gpt2":  # its own layers are no linear ones: the head is
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"])).eval()
    else:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=[target])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return model, UnitGradients(find_trainables(model), CPU)


def units_of(model: Any, sink: UnitGradients, row: list[list[int]]) -> torch.Tensor:
    """Each example's gradient, of one row, [examples, coordinates]."""
    lengths = [len(text) for text in row]
    layout = Layout.packed(range(len(row)), [0, *np.cumsum(lengths)[:-1].tolist()], lengths, CPU)
    sink.reset()
    sink.begin(layout)
    weights = torch.tensor([1 / (n - 1) for n in lengths])
    torch.autograd.backward(summed_loss(pack_rows([row], CPU), layout, weights)(model))
    found = sink._units
    assert found is not None
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_packed_users_gradient_is_that_of_the_user_alone(family: str, attention: str) -> None:
    """The user before changes all of its text: not a bit of the other's gradient does. Packed and alone agree to 1e-5.

    Broken by rows without positions that begin again (the text before is seen).
    """
    model, sink = adapted(family, attention)
    assert keeps_apart(model, CPU)
    first, second = units_of(model, sink, [A, B]), units_of(model, sink, [OTHER, B])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    alone = units_of(model, sink, [B])[0]
    assert float((alone - first[1]).norm()) <= 1e-5 * float(alone.norm())
    assert float(alone.norm()) > 0


def test_families_that_leak_or_are_unknown_have_a_row_each() -> None:
    assert not keeps_apart(make_model("opt"), CPU)
    assert not keeps_apart(torch.nn.Linear(2, 2), CPU)


def test_a_family_on_the_list_that_leaks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPT, were it listed; a llama that gets a mask of ones; one that is not told positions; one that can't be run."""
    monkeypatch.setattr(packing, "FAMILIES", FAMILIES | {"opt"})
    assert not keeps_apart(make_model("opt"), CPU)
    for change in (
        lambda given: {**given, "attention_mask": torch.ones_like(given["input_ids"])},
        lambda given: {k: v for k, v in given.items() if k != "position_ids"},
        lambda given: {k: v * 2 if k == "position_ids" else v for k, v in given.items()},
    ):
        model = make_model("llama")
        real = model.forward
        model.forward = lambda real=real, change=change, **given: real(**change(given))
        assert not keeps_apart(model, CPU)


def test_the_trial_leaves_modes_and_random_states_alone() -> None:
    model = make_model("gpt2", resid_pdrop=0.5)
    model.transformer.h[0].train()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    assert keeps_apart(model, CPU)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_not_finite_stays_its_own_units() -> None:
    """Of rows that are shared, the first example is not a number; the others, shorter, have their gradients.

    Seen red: shorter examples filled up with the micro-batch's first token, which times zero is no zero.
    """
    layout = Layout.packed([0, 1, 1, 2], [0, 7, 10, 14], [7, 3, 4, 5], CPU)
    torch.manual_seed(0)
    gradients, inputs = torch.randn(2, 10, 3), torch.randn(2, 10, 4)
    values = torch.randn(2, 10, 3)
    expected = layout.products(gradients, inputs), layout.sums(values)
    for tensor in (gradients, inputs, values):
        tensor[0, :7] = float("nan")
    for found, whole in zip((layout.products(gradients, inputs), layout.sums(values)), expected, strict=True):
        assert bool(found[0].isnan().all())
        assert torch.equal(found[1:], whole[1:])


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_learns_the_same_packed_or_not(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int
) -> None:
    """Whole runs with joint clipping, users over several micro-batches and an optimizer: weights to 1e-5.

    Broken by a layout whose examples begin a token late.
    """
    found = []
    for how in ("auto", "off"):
        run_dir = new_run(
            mechanism=make_mechanism(steps=3),
            train={"optimizer": {"type": "adamw", "lr": 1e-2}},
            compute={"packing": how, "microbatch_tokens": 150, "deepspeed": {"stage": 2}},
        )
        found.append(workers(world)(checks.packed_and_trained, run_dir))
    for (packed, after), (plain, expected) in zip(*found, strict=True):
        assert packed > 0
        assert plain == 0
        for name, value in expected.items():
            np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("world", "stages"), [(1, (0, 3)), (2, (1, 2, 3))])
def test_a_user_whose_loss_is_not_finite_harms_no_neighbour(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path, world: int, stages: tuple[int, ...]
) -> None:
    """The embedding of "@", which no trial uses, is not a number, and one user wrote it, beside others in their rows.

    Seen red: rows that are shared all the same (attention weighs the others' tokens with zero times not a number).
    """

    def edit(model: Any) -> None:
        model.model.embed_tokens.weight[CHARACTERS.index("@")] = float("nan")

    ill_base = save_base(tmp_path / "ill", edit=edit)
    posts = made_posts(12)
    for post in posts:
        if post["user"] == "user-004":
            post["text"] = "@" + post["text"]
    runs = [
        new_run(
            ill_base,
            posts=posts,
            mechanism=make_mechanism(steps=2, rates=(1.0, 1.0)),
            data={"holdout": {"users": 0.0}},
            evaluation={"users": 1},
            compute={"packing": "auto", "microbatch_tokens": 150, "deepspeed": {"stage": stage}},
        )
        for stage in stages
    ]
    expected = train_plainly(runs[0])
    assert sum(not np.isfinite(norm) for step in expected.norms for norm, _ in step) == 2
    for run_dir in runs:
        for packed, after in workers(world)(checks.packed_and_trained, run_dir):
            assert packed > 0
            for name, value in expected.final.items():
                np.testing.assert_allclose(after[name], value.numpy(), rtol=0, atol=1e-5, err_msg=name)


def test_what_fills_up_is_nobody_elses() -> None:
    """A token that is not finite stays with its unit, whichever others are shorter: nothing times infinity is NaN.

    Seen red: the places that fill a shorter example up taken from the first token of the micro-batch.
    """
    layout = Layout.packed([0, 1, 2], [0, 5, 7], [5, 2, 3], torch.device("cpu"))
    inputs, gradients = torch.randn(1, 10, 4), torch.randn(1, 10, 3)
    expected = layout.products(gradients, inputs)
    inputs[0, 0] = torch.inf
    found = layout.products(gradients, inputs)
    assert not bool(torch.isfinite(found[0]).all())
    assert torch.equal(found[1:], expected[1:])


def test_what_fills_up_a_bucket_is_nobody_elses() -> None:
    """The same for norms that are found without gradients: units of 5 and 6 tokens lie side by side.

    Seen red: as above, in the buckets.
    """
    layout = Layout.packed([0, 1], [0, 6], [6, 5], torch.device("cpu"))
    (bucket,), _ = _buckets(layout, 1, 11)
    inputs, gradients = torch.randn(11, 4), torch.randn(11, 3)
    inputs[0] = torch.inf
    g, x = bucket.take(gradients, mask=True), bucket.take(inputs, mask=False)
    norms = _squared_norms(g, x, _sizes(g) * _sizes(x))
    product = gradients[6:].T @ inputs[6:]
    torch.testing.assert_close(norms[1].float(), product.square().sum())
