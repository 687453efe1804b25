"""What a base model does not allow an audit is refused by the plan, in one line, before anything is reserved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from harness.cli import main
from harness.errors import ArgumentError
from harness.planning.attackable import check_attacks, check_texts
from harness.planning.shapes import read_shape
from harness.spec import load_spec
from harness.spec.adapter_block import AdapterBlock
from harness.spec.audit_block import AuditBlock
from harness.training.adapters import add_adapter
from tests.families import make_model
from tests.plans import write_spec
from tests.test_footprint import model_folder

DIRECTIONS = {"one_run": {"canaries": 30_000, "kinds": ["gradient"]}}
TEXTS = {"reconstruction": {"tokens": 40}}
ADAPTER = {"type": "lora", "r": 4, "targets": ["v_proj"], "freeze_a": True}


@pytest.mark.parametrize(
    ("audit", "context", "message"),
    [
        (DIRECTIONS, 2048, "audit.one_run.canaries: 30000 of them are gradient canaries, which takes as many trained "
         "weights, but only 23040 are trained"),
        ({"one_run": {"canaries": 46_080}}, 2048, None),  # half of them hold texts
        ({"one_run": {"canaries": 46_082}}, 2048, "but only 23040 are trained"),
        (TEXTS, 32, "audit.reconstruction.tokens: 40, but the model's context has 32 tokens"),
        (TEXTS, 40, None),
        (TEXTS, None, None),
    ],
)  # fmt: skip
def test_the_plan_refuses_what_the_model_does_not_allow(
    tmp_path: Path, audit: dict[str, Any], context: int | None, message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a line. Break: `check_attacks` left out of `make_plan`."""
    base = model_folder(tmp_path / "base", **({} if context is None else {"max_position_embeddings": context}))
    spec = write_spec(tmp_path, model={"base": str(base), "adapter": ADAPTER}, audit=audit)
    code, err = main.run_app(["plan", str(spec)]), capsys.readouterr().err
    assert code == (0 if message is None else 2)
    assert (message or "") in err
    assert len(err.splitlines()) == (message is not None)


def test_where_no_model_is_here_the_run_asks_when_it_has_one(tmp_path: Path) -> None:
    """Break: the run's own folder not looked at."""
    loaded = load_spec(write_spec(tmp_path, model={"base": "no-model", "adapter": ADAPTER}, audit=DIRECTIONS))
    check_attacks(loaded.spec, loaded.base_dir)
    with pytest.raises(ArgumentError, match="only 23040"):
        check_attacks(loaded.spec, loaded.base_dir, model_folder(tmp_path / "base"))


def test_a_model_that_says_no_context_has_none() -> None:
    check_texts(AuditBlock.model_validate(TEXTS), None)
    check_texts(AuditBlock.model_validate({"one_run": {}}), 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("freeze_a", [True, False])
def test_no_more_is_refused_than_a_worker_would(tmp_path: Path, family: str, freeze_a: bool) -> None:
    """What is trained is at most what files tell, in every layout of weights. Break: GPT-2's read as [out, in]."""
    model = make_model(family)
    save_file({n: p.detach().numpy() for n, p in model.named_parameters()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    targets = {"llama": ["v_proj", "up_proj"], "gpt2": ["c_attn", "c_fc"], "opt": ["fc1", "v_proj"]}[family]
    adapter = AdapterBlock.model_validate({"r": 3, "targets": targets, "freeze_a": freeze_a})
    shape = read_shape(tmp_path)
    assert shape is not None
    real = sum(p.numel() for p in add_adapter(model, adapter).parameters() if p.requires_grad)
    assert shape.trained(adapter) == real
    assert shape.context == 256
