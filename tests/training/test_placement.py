"""Where workers are placed: what Ray Train is asked for, and what would wait for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import MachineError
from harness.planning import make_plan
from harness.spec.compute_block import ComputeBlock
from harness.training.ray import trainer
from harness.training.ray_session import check_resources
from tests.plans import write_spec

HELD = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: HELD)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])


def asked(tmp_path: Path, device: str, **compute: Any) -> Any:
    return trainer(tmp_path, ComputeBlock(**compute), device, 0).scaling_config


def test_ray_train_is_asked_for_it(tmp_path: Path) -> None:
    """Break: leave one of them out; ask for GPUs of a kind where a CPU trains."""
    found = asked(tmp_path, "cuda", workers=2, gpu_type="A100", placement="strict_spread")
    assert (found.placement_strategy, found.accelerator_type) == ("STRICT_SPREAD", "A100")
    found = asked(tmp_path, "cpu", workers=2, gpu_type="A100")
    assert (found.placement_strategy, found.accelerator_type) == ("PACK", None)


@pytest.mark.parametrize(
    ("compute", "line"),
    [
        ({"gpu_type": "A1000"}, 'compute.gpu_type: Ray knows no A1000 here; did you mean "A100"?'),
        ({"gpu_type": "L4"}, "compute.gpu_type: Ray knows no L4 here; there are A100"),
        (
            {"workers": 3, "placement": "strict_spread"},
            "compute.placement: strict_spread wants 3 machines; Ray has 2",
        ),
    ],
)
def test_what_would_wait_for_ever(compute: dict[str, Any], line: str) -> None:
    """Break: look at the number of GPUs alone; count machines that are lost."""
    with pytest.raises(MachineError) as caught:
        check_resources(ComputeBlock(**compute), "cuda")
    assert str(caught.value) == line
    check_resources(ComputeBlock(workers=2, gpu_type="A100", placement="strict_spread"), "cuda")


def test_it_is_no_part_of_the_mechanism(tmp_path: Path) -> None:
    """Break: count a key of compute into the digest."""
    spec = write_spec(tmp_path)
    moved = ["compute.placement=spread", "compute.gpu_type=A100", "compute.results=s3://bucket/x"]
    digests = {make_plan(spec, words).mechanism.digest for words in ([], [*moved, "compute.kubernetes.image=x"])}
    assert len(digests) == 1
