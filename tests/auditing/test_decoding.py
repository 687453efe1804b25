"""Decoding with padding on the left and kept prefixes: what each row alone gives, token by token, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.auditing import decoding
from tests.auditing.models import CPU, adapted
from tests.families import make_model

FAMILIES = ["llama", "gpt2", "opt", "gpt_neox", "qwen3", "gemma2", "gemma3_text", "mistral", "granite"]
PREFIXES = [[5, 99, 17, 3, 64, 40], [8], [9, 9, 30, 71, 2, 5, 5, 88, 120, 4, 6], [1, 7, 100]]


def likeliest(logits: torch.Tensor, generator: Any) -> torch.Tensor:
    return logits.argmax(dim=-1, keepdim=True)


def alone(model: Any, prefix: list[int], length: int) -> list[int]:
    """Greedy, every token from all of the row again."""
    row = list(prefix)
    with torch.no_grad():
        for _ in range(length):
            row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    return row[len(prefix) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_greedy_decoding_is_what_each_row_alone_gives(
    monkeypatch: pytest.MonkeyPatch, family: str, budget: int
) -> None:
    """Prefixes of four lengths beside each other, two rows of each, beyond a sliding window of 8.

    Broken by positions that count padding, or by a mask that lets it be seen.
    """
    monkeypatch.setattr(decoding, "_draw", likeliest)
    model = make_model(family, "eager" if family.startswith("gemma") else "sdpa")
    assert decoding.keeps_prefixes(model, PREFIXES[2], CPU)
    found = decoding.continuations(model, PREFIXES, 2, 9, torch.Generator(), CPU, budget)
    assert found == [[alone(model, prefix, 9)] * 2 for prefix in PREFIXES]


def test_an_adapter_decodes_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_draw", likeliest)
    model = adapted("gpt2", targets="all-linear", r=4, alpha=8, freeze_a=False)
    assert decoding.keeps_prefixes(model, PREFIXES[0], CPU)
    found = decoding.continuations(model, PREFIXES, 1, 5, torch.Generator(), CPU, 1000)
    assert found == [[alone(model, prefix, 5)] for prefix in PREFIXES]


@pytest.mark.parametrize("deaf_to", ["attention_mask", "position_ids"])
def test_a_model_that_padding_changes_is_found_out(monkeypatch: pytest.MonkeyPatch, deaf_to: str) -> None:
    """Its prefixes are put beside others of their length alone. Broken by taking every model's word for it."""
    monkeypatch.setattr(decoding, "_draw", likeliest)
    model, inner = make_model("llama"), make_model("llama").forward

    def deaf(**given: Any) -> Any:
        return inner(**{name: value for name, value in given.items() if name != deaf_to})

    monkeypatch.setattr(model, "forward", deaf)
    assert decoding.keeps_prefixes(model, PREFIXES[0], CPU) is (deaf_to == "position_ids")
    found = decoding.continuations(model, PREFIXES, 2, 4, torch.Generator(), CPU, 1000)
    assert found == [[alone(make_model("llama"), prefix, 4)] * 2 for prefix in PREFIXES]


def test_each_prefix_is_computed_once_and_no_token_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken by reading the whole row again for each token, or the prefix for each copy."""
    model, shapes = make_model("llama"), []
    inner = model.forward
    monkeypatch.setattr(decoding, "keeps_prefixes", lambda *a: True)
    monkeypatch.setattr(
        model, "forward", lambda **given: (shapes.append(tuple(given["input_ids"].shape)), inner(**given))[1]
    )
    decoding.continuations(model, PREFIXES, 5, 4, torch.Generator(), CPU, 1000)
    assert shapes == [(4, 11), (20, 1), (20, 1), (20, 1)]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("budget", [1, 45, 200])
def test_micro_batches_keep_the_budget(together: bool, budget: int) -> None:
    """Padding and what is drawn included; broken by counting prefixes instead of rows."""
    batches = list(decoding._batches(PREFIXES, 5, 4, budget, together=together))
    for batch in batches:
        rows, width = sum(n for _, n in batch), max(len(PREFIXES[i]) for i, _ in batch)
        assert rows * (width + 4) <= budget or rows == 1
        assert together or {len(PREFIXES[i]) for i, _ in batch} == {width}
    assert [sum(n for batch in batches for i, n in batch if i == prefix) for prefix in range(4)] == [5] * 4


def test_of_no_copies_nothing_is_computed() -> None:
    assert decoding.continuations(make_model("llama"), [], 3, 4, torch.Generator(), CPU, 10) == []
    assert decoding.continuations(make_model("llama"), PREFIXES, 0, 4, torch.Generator(), CPU, 10) == [[]] * 4
