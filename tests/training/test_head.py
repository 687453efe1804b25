"""Losses without logits: the same numbers, little memory, and only where they are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from harness.training import head
from harness.training.batches import Rows, pad, token_losses
from harness.training.head import install_loss_head, loss_head, losses_of_logits, plain_head
from tests.families import make_model

CPU = torch.device("cpu")
LEAN = ("llama", "qwen2", "qwen3", "mistral", "smollm3", "gemma", "gemma3_text", "gpt2", "gpt_neox", "opt")


def made_rows(width: int = 40, prompt: int = 0) -> Rows:
    rows = pad([[(7 * i + 3 * r) % 120 for i in range(width - 5 * r)] for r in range(3)], CPU)
    targets = rows.targets.clone()
    targets[:, :prompt] = -100
    return Rows(rows.inputs, targets, (targets.flatten() != -100).nonzero().squeeze(1))


def gradient_at_embeddings(model: Any, losses_of: Any) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []

    def cut(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = model.get_input_embeddings().register_forward_hook(cut)
    losses = losses_of(model)
    handle.remove()
    weights = torch.linspace(-1, 2, losses.numel(), dtype=losses.dtype).view_as(losses)
    return losses.detach(), torch.autograd.grad((losses * weights).sum(), seen[0])[0]


def plainly(model: Any, rows: Rows) -> torch.Tensor:
    logits = model(input_ids=rows.inputs, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none").view_as(
        rows.targets
    )


def leanly(model: Any, rows: Rows) -> torch.Tensor:
    found = loss_head(model)
    assert found is not None
    with found.losses_of(rows.targets, rows.predicted):
        return model(input_ids=rows.inputs, use_cache=False).logits.squeeze(-1)


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_losses_of_logits_are_torchs_own(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 8 * 50 * rows_at_once)
    draw = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(17, 50, generator=draw) + 1e5 * (torch.arange(17) % 2).unsqueeze(1)).requires_grad_()
    targets = torch.randint(50, (17,), generator=draw).masked_fill_(torch.arange(17) % 3 == 0, -100)
    weights = torch.linspace(-1, 2, 17)
    mine = losses_of_logits(logits, targets)
    torchs = functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-5)
    for _ in range(2):  # the graph serves two passes
        found, expected = (torch.autograd.grad(x @ weights, logits, retain_graph=True)[0] for x in (mine, torchs))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompt", [0, 9, 60])
@pytest.mark.parametrize("kind", ["untied", "tied", "bias"])
def test_losses_and_gradients_are_those_of_logits_in_float64(
    kind: str, prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With seven tokens at a time, and one left over. Broken by a gradient that misses the target's −1, and by
    gradients that are put to the wrong places.
    """
    monkeypatch.setattr(head, "CHUNK_BYTES", 7 * 128 * 4)
    model = make_model("llama", tie_word_embeddings=kind == "tied").double().requires_grad_(False)
    if kind == "bias":
        model.lm_head.bias = nn.Parameter(torch.linspace(-2, 2, 128, dtype=torch.float64), requires_grad=False)
    rows = made_rows(prompt=prompt)
    losses, gradient = gradient_at_embeddings(model, lambda m: plainly(m, rows))
    assert install_loss_head(model, plain_head(model), CPU)
    found, at = gradient_at_embeddings(model, lambda m: leanly(m, rows))
    torch.testing.assert_close(found, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at, gradient, rtol=1e-10, atol=1e-14)
    assert (len(rows.predicted) == 0) == (prompt == 60)
    # And whoever wants logits has them still.
    assert model(input_ids=rows.inputs).logits.shape == (3, 40, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", LEAN)
def test_it_is_taken_where_logits_are_the_layers_output(family: str, dtype: torch.dtype) -> None:
    model = make_model(family).to(dtype).requires_grad_(False)
    rows = made_rows()
    with torch.no_grad():
        expected = token_losses(model, rows)
        assert install_loss_head(model, plain_head(model), CPU)
        assert loss_head(model) is not None
        found = token_losses(model, rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("gemma2", {}), ("gemma2", {"final_logit_softcapping": 3000.0}), ("granite", {}), ("cohere", {})],
)
def test_a_model_that_does_something_to_its_logits_keeps_them(
    family: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    """A cap so high that it moves a loss by 1e-6 is seen too. Red without the comparison of what the layer gave with
    what the model gave.
    """
    model = make_model(family, "eager", **changes).to(dtype).requires_grad_(False)
    rows = made_rows()
    with torch.no_grad():
        expected = token_losses(model, rows)
        assert not install_loss_head(model, plain_head(model), CPU)
        assert loss_head(model) is None
        assert torch.equal(token_losses(model, rows), expected)


def test_a_head_that_is_trained_or_hooked_or_hides_words_keeps_its_logits() -> None:
    """Red without the comparison with logits: a model may leave a number per place alone, and not a word's."""
    assert not install_loss_head(make_model("llama"), plain_head(make_model("llama")), CPU)
    hooked = make_model("llama").requires_grad_(False)
    hooked.lm_head.register_forward_hook(lambda m, a, out: out * 2)
    assert not install_loss_head(hooked, plain_head(hooked), CPU)
    hiding = make_model("llama").requires_grad_(False)
    real = hiding.forward

    def forward(**inputs: Any) -> Any:
        output = real(**inputs)
        output.logits[..., 100:] = -torch.inf
        return output

    hiding.forward = forward
    assert not install_loss_head(hiding, plain_head(hiding), CPU)
    assert not install_loss_head(nn.Linear(2, 2), plain_head(nn.Linear(2, 2)), CPU)


def test_modes_and_random_states_are_what_they_were() -> None:
    model = make_model("gpt2", resid_pdrop=0.5).requires_grad_(False)
    model.transformer.h[0].train()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    assert install_loss_head(model, plain_head(model), CPU)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("lean", [True, False])
def test_no_tensor_of_tokens_times_vocabulary_ever_lives(lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 words, 180 tokens, 10 at a time: nothing made in the two passes, nor kept between them, is larger than the
    vocabulary's own weights. With logits it is: the test can fail.
    """
    monkeypatch.setattr(head, "CHUNK_BYTES", 10 * 4000 * 4)
    model = make_model("llama", vocab_size=4000).requires_grad_(False)
    if lean:
        assert install_loss_head(model, plain_head(model), CPU)
    rows = pad([list(range(1, 61))] * 3, CPU)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        gradient_at_embeddings(model, lambda m: token_losses(m, rows))
    if lean:
        assert largest.numbers <= 4000 * 32  # the weights, transposed
        assert max(kept) <= 3 * 60 * 64
    else:
        assert largest.numbers == max(kept) == 180 * 4000
