"""What worker processes run to test that at ZeRO 3 nobody ever has the whole model; on every rank at once."""

from __future__ import annotations

import contextlib
import functools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from harness.errors import ArgumentError
from harness.spec.models import OptimizerBlock
from harness.training import checkpoints, engine, gathered, loop, two_pass, updating, verifying, whole_model
from harness.training.engine import Engine
from harness.training.job import Failure, Folder
from harness.training.whole_model import prepare, watched_engine
from tests.training import checks
from tests.training.whole import make_model

PIECE = 100_000
"""Elements that DeepSpeed may gather ahead or keep, in place of its windows of billions."""
FILE_BYTES = 30_000
"""Of a file; the tiny models' weights need several then."""


@contextlib.contextmanager
def small_windows() -> Iterator[None]:
    """What is bounded by a constant is bounded by a small one, so that a small model shows what is not."""
    real = engine.deepspeed_config

    def small(stage: int, offload: engine.Offload = "none") -> dict[str, Any]:
        config = real(stage, offload)
        if stage == 3:
            config["zero_optimization"] |= {
                "stage3_max_live_parameters": PIECE,
                "stage3_max_reuse_distance": 0,
                "stage3_prefetch_bucket_size": 0,
                "reduce_bucket_size": PIECE,
                "sub_group_size": PIECE,
            }
        return config

    with mock.patch.object(engine, "deepspeed_config", small), mock.patch.object(gathered, "FILE_BYTES", FILE_BYTES):
        yield


PHASES: dict[str, tuple[Any, str]] = {
    "loading": (loop, "build_model"),
    "verifying": (whole_model, "verify_divided"),
    "a step": (two_pass.TwoPassUpdate, "step"),
    "looking at weights": (Engine, "parameters"),
    "looking at the optimizer": (Engine, "optimizer_state"),
    "looking whether it moves": (loop, "check_moves"),
    "a checkpoint": (checkpoints, "save"),
    "reading one": (checkpoints, "load_together"),
    "going on": (Engine, "restore"),
    "saving": (loop, "save_model"),
}
ADAPTER_PHASES: dict[str, tuple[Any, str]] = {
    "loading": (loop, "build_model"),
    "seeing whether it reaches its weights": (loop, "check_reach"),
    "the loss head": (loop, "install_loss_head"),
    "probing": (updating.AdapterUpdate, "probe"),
    "a step": (updating.AdapterUpdate, "step"),
    "evaluating": (loop, "evaluate"),
    "a checkpoint": (checkpoints, "save"),
    "going on": (Engine, "restore"),
    "saving": (loop, "save_adapter"),
}


def most_beside(run_dir: Path, *, adapter: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """`loop.train`, stopped after step 1 and gone on with.

    Returns:
        Of each phase, the most bytes that were there beside those that were there before it; and the bytes of the
        model's parts and of the whole.
    """
    found: dict[str, int] = {}
    engines: list[Engine] = []
    with checks._Live() as live, contextlib.ExitStack() as stack:

        def watch(phase: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                engines.extend(a for a in args if isinstance(a, Engine))
                outer, before, live.most = live.most, live.now, live.now
                try:
                    return real(*args, **kwargs)
                finally:
                    found[phase] = max(found.get(phase, 0), live.most - before)
                    live.most = max(outer, live.most)

            return call

        stack.enter_context(small_windows())
        stack.enter_context(mock.patch.object(verifying, "WIDTHS", verifying.WIDTHS[-1:]))
        for phase, (owner, name) in (ADAPTER_PHASES if adapter else PHASES).items():
            stack.enter_context(mock.patch.object(owner, name, watch(phase, getattr(owner, name))))
        checks.stopped_after_release_of(run_dir, 1)
        assert loop.train(run_dir) is None
        held: list[Any] = list(engines[-1].module.parameters())
        parts = {
            "whole": 4 * sum(p.ds_numel for p in held),
            "part": 4 * sum(p.ds_tensor.numel() for p in held),
        }
    dist.barrier()
    return found, parts


def train_in_pieces(run_dir: Path) -> str | None:
    """`checks.train` whose files are small."""
    with small_windows():
        return checks.train(run_dir)


def weights_and_state(run_dir: Path, *, verified: bool) -> tuple[checks.Weights, checks.Weights, int]:
    """After two steps of training, with the model verified before or not: weights, optimizer, and its steps."""
    nothing = mock.patch.object(whole_model, "verify_divided")
    with contextlib.nullcontext() if verified else nothing:
        series = checks._series(run_dir)
    assert not verified or series.engine.optimizer_state()[1] == 0
    for step in range(2):
        series._step(step)
    state, steps = series.engine.optimizer_state()
    return checks._weights(series.engine), {n: v.numpy().copy() for n, v in state.items()}, steps


# --- what is refused ----------------------------------------------------------------------------------------


class OddRMSNorm(nn.Module):
    """It calls itself an RMSNorm and isn't one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(32) + 0.5), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + self.eps) * self.weight


def _used_twice(model: Any, name: str) -> None:
    layer = model.get_submodule(name)
    real = layer.forward
    layer.forward = lambda x: real(x) + layer.weight[:, 0] * x.mean(-1, keepdim=True)


def _odd(model: Any) -> None:
    model.model.norm = OddRMSNorm()


def _unused(model: Any) -> None:
    model.model.unused = nn.Linear(4, 4, bias=False)


def _bilinear(model: Any) -> None:
    model.model.extra = nn.Bilinear(3, 3, 3)


def _shared(model: Any) -> None:
    model.model.layers[1].mlp.gate_proj.weight = model.model.layers[0].mlp.gate_proj.weight


ILL: dict[str, Callable[[Any], None]] = {
    "up_proj": lambda model: _used_twice(model, "model.layers.0.mlp.up_proj"),
    "down_proj": lambda model: _used_twice(model, "model.layers.0.mlp.down_proj"),
    "odd": _odd,
    "unused": _unused,
    "bilinear": _bilinear,
    "shared": _shared,
}


def _engine(model: nn.Module, weights: Any) -> Engine:
    return Engine(model, weights, OptimizerBlock(type="sgd", lr=1.0), 3, calling=True)


def refusals() -> dict[str, str]:
    """What is said of each ill model, divided."""
    import deepspeed

    found = {}
    for name, harm in ILL.items():
        torch.manual_seed(0)
        model = make_model("llama")
        harm(model)
        deepspeed.zero.Init(module=model, config_dict_or_path=engine.deepspeed_config(3), dtype=torch.float32)
        make_engine = functools.partial(_engine, prepare(model))
        with pytest.raises(ArgumentError) as caught:
            watched_engine(model, torch.device("cpu"), make_engine)
        found[name] = str(caught.value)
    return found


# --- disks and workers --------------------------------------------------------------------------------------


def full_in_the_middle(run_dir: Path, after: int) -> str | None:
    """`train_in_pieces` whose second checkpoint can't write its files after the first few."""
    real_save, real, limits = checkpoints.save, checkpoints._write_part, resource.getrlimit(resource.RLIMIT_FSIZE)
    written = {"checkpoints": 0, "files": 0}

    def save(*args: Any) -> None:
        written["checkpoints"] += 1
        written["files"] = 0
        real_save(*args)

    def write(*args: Any) -> None:
        written["files"] += 1
        if written["checkpoints"] < 2 or written["files"] <= after:
            return real(*args)
        assert written["files"] == after + 1  # nothing is written after a failure
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        try:
            return real(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with contextlib.ExitStack() as stack:
        stack.enter_context(small_windows())
        stack.enter_context(mock.patch.object(checkpoints, "save", save))
        stack.enter_context(mock.patch.object(checkpoints, "_write_part", write))
        failure: Failure | None = loop.train(run_dir)
    dist.barrier()
    return None if failure is None else failure.message


def one_cannot_read(run_dir: Path) -> str | None:
    """`checks.train` on a run whose checkpoints the last rank can't read."""
    last = dist.get_rank() == dist.get_world_size() - 1
    with mock.patch.object(checkpoints, "_open", return_value=None) if last else contextlib.nullcontext():
        return checks.train(run_dir)


def newest_files(run_dir: Path) -> list[str]:
    """Names of the files of the newest checkpoint."""
    return sorted(p.name for p in max(Folder(run_dir).checkpoints("private").glob("step-*")).iterdir())
