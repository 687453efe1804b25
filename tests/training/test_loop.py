"""Whole trainings in real worker processes: equal to a plain reference, in lockstep, clear when they can't go on."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.store import Corpus
from harness.training.checkpoints import load_newest
from harness.training.job import Failure, Folder, Job
from tests.tiny import CHARACTERS, GROUPS, copy_run, made_posts, make_mechanism, save_base
from tests.training import checks
from tests.training.reference import Reference, train_plainly

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"type": "adamw", "lr": 1e-2, "weight_decay": 0.01},
    "sgd": {"type": "sgd", "lr": 0.5, "momentum": 0.9},
}
TIGHT = {"microbatch_tokens": 70}
"""Two rows a micro-batch: most users go on from one to the next."""


def on(stage: int, **compute: Any) -> dict[str, Any]:
    return {"deepspeed": {"stage": stage}, **compute}


def assert_weights(found: checks.Weights, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=tolerance, err_msg=name)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]


# --- the same as one plain process --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(base: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """The plain reference of the noise-free run under each optimizer."""
    from tests.tiny import make_run

    known: dict[str, Reference] = {}

    def get(optimizer: str) -> Reference:
        if optimizer not in known:
            run_dir = tmp_path_factory.mktemp("reference") / "run"
            options = {"optimizer": OPTIMIZERS[optimizer]}
            make_run(run_dir, base, cache=cache, mechanism=make_mechanism(steps=4), train=options)
            known[optimizer] = train_plainly(run_dir)
        return known[optimizer]

    return get


@pytest.mark.parametrize(
    ("world", "stage", "optimizer"),
    [(w, s, "adamw") for w in (1, 2) for s in (0, 1, 2, 3)] + [(1, 0, "sgd"), (2, 3, "sgd")],
)
def test_the_weights_equal_a_single_process_reference(
    reference: Callable[[str], Reference],
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
    world: int,
    stage: int,
    optimizer: str,
) -> None:
    """Four steps without noise, to 1e-5: cohort, joint clipping, the public denominator, optimizer and sharding.

    Broken by averaging over workers, by the realised cohort in the denominator, by clipping parts of a user, or by a
    share that is computed twice.
    """
    expected = reference(optimizer)
    norms = [pair for step in expected.norms for pair in step]
    assert any(norm > clip for norm, clip in norms)
    assert any(norm < clip for norm, clip in norms)
    run_dir = new_run(
        mechanism=make_mechanism(steps=4), train={"optimizer": OPTIMIZERS[optimizer]}, compute=on(stage, **TIGHT)
    )
    for ((before, after),) in workers(world)(checks.trained, [run_dir]):
        assert_weights(before, expected.initial, 0)
        assert_weights(after, expected.final, 1e-5)
    moved = max(float((expected.final[n] - expected.initial[n]).abs().max()) for n in expected.final)
    assert moved > 1e-2


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
def test_first_factors_that_are_frozen_stay_and_the_others_train(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """Broken by a frozen factor that is trained, noised, or counted in the norm."""
    options = {"train": {"optimizer": OPTIMIZERS["adamw"]}, "model": {"adapter": {"freeze_a": True}}}
    run_dir = new_run(mechanism=make_mechanism(steps=4, noise_std=0.1), compute=on(stage, **TIGHT), **options)
    expected = train_plainly(run_dir)
    assert all(".lora_B." in name for name in expected.final)
    for ((_, after),) in workers(world)(checks.trained, [run_dir]):
        assert_weights(after, expected.final, 1e-5)


@pytest.mark.parametrize(
    ("world", "stage", "schedule"),
    [(1, 0, {"type": "linear", "warmup": 2}), (2, 2, {"type": "cosine"}), (2, 3, {"type": "constant", "warmup": 3})],
)
def test_the_learning_rate_follows_its_schedule(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int, schedule: dict[str, Any]
) -> None:
    """Broken by a step that keeps the learning rate of the one before."""
    options = {"optimizer": OPTIMIZERS["adamw"], "schedule": schedule}
    run_dir = new_run(mechanism=make_mechanism(steps=4), train=options, compute=on(stage, **TIGHT))
    expected = train_plainly(run_dir)
    for ((_, after),) in workers(world)(checks.trained, [run_dir]):
        assert_weights(after, expected.final, 1e-5)


def test_the_checkpoint_holds_what_the_ranks_hold(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    run_dir = new_run(compute=on(3))
    first, second = workers(2)(checks.trained, [run_dir])
    checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
    assert checkpoint is not None
    assert checkpoint.step == 3
    for name, value in checkpoint.parameters.items():
        np.testing.assert_array_equal(first[0][1][name], value.numpy())
        np.testing.assert_array_equal(second[0][1][name], value.numpy())


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_the_size_of_micro_batches_changes_nothing(
    reference: Callable[[str], Reference], new_run: Callable[..., Path], workers: Callable[[int], Any], budget: int
) -> None:
    run_dir = new_run(
        mechanism=make_mechanism(steps=4),
        train={"optimizer": OPTIMIZERS["adamw"]},
        compute=on(2, microbatch_tokens=budget),
    )
    ((_, after),) = workers(1)(checks.trained, [run_dir])[0]
    assert_weights(after, reference("adamw").final, 1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_very_unequal_shares_stay_in_lockstep(
    new_run: Callable[..., Path], workers: Callable[[int], Any], stage: int
) -> None:
    """One user has 30 long examples, one row a micro-batch: the other worker idles along, and computes nothing wrong.

    Broken (ranks wait for each other until the time is up, or the weights differ) by leaving out idle micro-batches.
    """
    posts = [p for p in made_posts() if p["user"] in {f"user-{u:03d}" for u in range(0, 40, 5)}]
    talker = {"user": "talker", "plan": "paid", "text": "all work and no play " * 45}
    options = {
        "posts": [*posts, talker],
        "mechanism": make_mechanism(steps=2, rates=(1.0, 1.0), examples_per_user=1000),
        "train": {"optimizer": {"type": "sgd", "lr": 1.0}},
        "data": {"holdout": {"users": 0.0}},
        "evaluation": {"users": 1},
    }
    run_dir = new_run(**options, compute=on(stage, microbatch_tokens=1))
    corpus = Corpus.load(Job.load(run_dir).corpus)
    assert max(corpus.n_examples) > 25
    assert sum(corpus.n_examples) < 2 * max(corpus.n_examples)  # more than a fair share for one of two
    expected = train_plainly(run_dir)
    for ((_, after),) in workers(2)(checks.trained, [run_dir], timeout=120):
        assert_weights(after, expected.final, 1e-5)


def test_a_user_whose_loss_is_not_finite_harms_nobody(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """The embedding of "~" is not a number, and one user wrote it. Broken by adding that user's gradient."""

    def edit(model: Any) -> None:
        model.model.embed_tokens.weight[CHARACTERS.index("~")] = float("nan")

    ill_base = save_base(tmp_path / "ill", edit=edit)
    posts = made_posts(12)
    for post in posts:
        if post["user"] == "user-004":
            post["text"] += " ~"
    options = {"mechanism": make_mechanism(steps=2, rates=(1.0, 1.0)), "data": {"holdout": {"users": 0.0}}}
    run_dir = new_run(ill_base, posts=posts, **options, compute=on(1, **TIGHT))
    expected = train_plainly(run_dir)
    assert sum(not np.isfinite(norm) for step in expected.norms for norm, _ in step) == 2
    for ((_, after),) in workers(2)(checks.trained, [run_dir]):
        assert_weights(after, expected.final, 1e-5)


def test_products_are_not_rounded_to_fewer_bits(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """What a driver may have set for speed makes norms of 10 bits. Seen red: left as it was found."""
    assert workers(1)(checks.precision_of_products, new_run()) == ["highest"]


@pytest.mark.parametrize("kind", ["tied", "bfloat16"])
def test_other_bases_train_too(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tied_base: Path, base: Path, kind: str
) -> None:
    """Tied embeddings to 1e-5; a bfloat16 base, whose forward pass is coarse, within a tenth of what is learned."""
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    run_dir = new_run(
        tied_base if kind == "tied" else base,
        model={"dtype": dtype},
        train={"optimizer": {"type": "sgd", "lr": 1.0}},
        compute=on(3, **TIGHT),
    )
    expected = train_plainly(run_dir)
    for ((_, after),) in workers(2)(checks.trained, [run_dir]):
        assert all(value.dtype == np.float32 for value in after.values())
        if kind == "tied":
            assert_weights(after, expected.final, 1e-5)
            continue
        learned, error = (
            torch.cat([(torch.from_numpy(after[n]).double() - start[n]).reshape(-1) for n in after]).norm()
            for start in (expected.initial, expected.final)
        )
        assert learned > 0.05
        assert error < 0.1 * learned


# --- what is released ---------------------------------------------------------------------------------------


def test_released_rows_are_public_and_the_same_on_every_rank(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    run_dir = new_run(mechanism=make_mechanism(steps=5, noise_std=0.5), train={"checkpoint_every": 2}, compute=on(1))
    first, second = workers(2)(checks.released, run_dir)
    assert first == second == [("private", step) for step in (0, 2, 4, 5)]
    assert [(row["series"], row["step"]) for row in rows(run_dir)] == first
    allowed = {"series", "step", "epsilon", "eval/loss", "eval/tokens", *(f"eval/loss/{g}" for g in GROUPS)}
    for row in rows(run_dir):
        assert set(row) <= allowed
        assert row["epsilon"] == pytest.approx(0.1 * row["step"])
    progress = json.loads(Folder(run_dir).progress.read_text())
    assert {k: progress[k] for k in ("series", "step", "steps")} == {"series": "private", "step": 5, "steps": 5}
    assert set(progress) == {"series", "step", "steps", "time"}


def test_private_files_are_for_their_owner_alone(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Broken by writing diagnostics, progress or checkpoints with the usual modes."""
    run_dir = new_run()
    workers(1)(checks.train, run_dir)
    private = Folder(run_dir).private
    written = [p for p in private.rglob("*") if p.name not in {"posts.jsonl", "groups.npy"}]
    assert {p.name for p in written} >= {"diagnostics.jsonl", "progress.json", "state.json", "parameters.safetensors"}
    for path in written:
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    names = {p.name for p in run_dir.iterdir()}
    assert names == {"private", "metrics.jsonl", "adapter"}


def test_the_ordinary_series_has_its_own_draws_and_no_adapter(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """Broken by reusing the cohorts that noise protects: their sums without noise would undo it."""
    run_dir = new_run(
        mechanism=make_mechanism(steps=6, noise_std=0.5),
        evaluation={"ordinary": True},
        train={"checkpoint_every": 3},
        compute=on(1),
    )
    assert workers(1)(checks.train, run_dir) == [None]
    series = [(row["series"], row["step"]) for row in rows(run_dir)]
    private, ordinary = (0, 3, 6), (3, 6)
    assert series == [("private", step) for step in private] + [("ordinary", step) for step in ordinary]
    lines = (Folder(run_dir).private / "diagnostics.jsonl").read_text().splitlines()
    sizes: dict[str, list[int]] = {"private": [], "ordinary": []}
    for line in map(json.loads, lines):
        sizes[line["series"]].append(line["cohort"])
    assert len(sizes["private"]) == len(sizes["ordinary"]) == 6
    assert sizes["private"] != sizes["ordinary"]
    assert all(row["epsilon"] is None for row in rows(run_dir) if row["series"] == "ordinary")
    from safetensors.torch import load_file

    saved = load_file(str(Folder(run_dir).adapter / "adapter_model.safetensors"))
    private = load_newest(Folder(run_dir).checkpoints("private"))
    assert private is not None
    for name, value in saved.items():
        assert torch.equal(value, private.parameters[name.replace(".weight", ".default.weight")])


# --- a training that can't succeed says so ------------------------------------------------------------------


def failure(run_dir: Path, group: Any) -> Failure:
    messages = set(group(checks.train, run_dir))
    found = Failure.load(run_dir)
    assert found is not None
    assert messages == {found.message}
    document = Folder(run_dir).failure.read_text()
    for word in ("tide", "lamp", "orchard", "user-0"):
        assert word not in document
    return found


@pytest.mark.parametrize("where", ["a weight", "padding", "padding, all trained"])
def test_a_base_that_is_not_finite_is_found_before_a_record_is_read(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path, where: str
) -> None:
    """Padding that is not finite would make a user's gradient depend on how long others' rows are.

    Broken by made-up tokens without the one that rows are filled up with.
    """

    def edit(model: Any) -> None:
        weight = model.model.layers[0].mlp.down_proj.weight if where == "a weight" else model.model.embed_tokens.weight
        weight[0, 0] = float("nan")

    model = {"adapter": {"type": "full"}} if where.endswith("trained") else {}
    run_dir = new_run(save_base(tmp_path / "nan", edit=edit), compute=on(3), model=model)
    found = failure(run_dir, workers(2))
    hint = "" if model else "; try model.dtype: float32"
    assert found == Failure(f"the base model's loss is not finite: it would never train{hint}", exit_code=1)
    assert not Folder(run_dir).metrics.exists()
    assert not (Folder(run_dir).private / "diagnostics.jsonl").exists()


def test_an_adapter_that_would_stay_zero_is_found_before_a_record_is_read(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """What the first layer's attention computes is thrown away. Broken by a probe that looks at the loss alone."""

    def edit(model: Any) -> None:
        model.model.layers[0].self_attn.o_proj.weight.zero_()

    run_dir = new_run(save_base(tmp_path / "cut", edit=edit), compute=on(2))
    found = failure(run_dir, workers(2))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert found.message == f"{name} gets no gradient: it would stay zero; leave it out of the targets"
    assert not (Folder(run_dir).private / "diagnostics.jsonl").exists()


def test_what_noise_alone_would_move_is_found_before_a_record_is_read(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """A norm's weight begins at one. Broken by looking at parameters that begin at zero alone."""

    def edit(model: Any) -> None:
        model.model.layers[0].self_attn.o_proj.weight.zero_()

    base = save_base(tmp_path / "cut", edit=edit)
    found = failure(new_run(base, model={"adapter": {"type": "norms"}}, compute=on(2)), workers(2))
    name = "base_model.model.model.layers.0.input_layernorm.ln_tuning_layers.default.weight"
    assert found.message == f"{name} gets no gradient: noise alone would move it; leave it out of the adapter"


def test_weights_that_never_move_end_the_run(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Nobody is ever sampled and there is no noise. Broken by not comparing with the initial weights."""
    mechanism = make_mechanism(steps=3, rates=(1e-9, 1e-9))
    found = failure(new_run(mechanism=mechanism, compute=on(1)), workers(2))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert found.message == f"{name} has not moved in 2 steps: the adapter would stay what it was"


def test_weights_beyond_the_numbers_end_the_run(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Break: look only whether they moved."""
    (message,) = workers(1)(checks.complaint_about_weights, new_run(), float("inf"))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert message == f"{name} is no longer finite after 1 steps; try a smaller train.optimizer.lr"


@pytest.mark.parametrize(("world", "stage"), [(1, 1), (2, 2)])
def test_a_step_that_deepspeed_leaves_out_ends_the_run(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """At ZeRO 1 and 2 it skips what has no finite norm: what was accounted would not be what was executed.

    Break: go on without a word.
    """
    run_dir = new_run(
        mechanism=make_mechanism(noise_std=1e35),
        compute={**on(1), "deepspeed": {"stage": stage}},
        train={"optimizer": {"type": "sgd", "lr": 1e-3}},
    )
    found = failure(run_dir, workers(world))
    assert found.message == "a step's noisy gradient is beyond float32 and was left out; try a smaller clipping.norm"


def test_a_loss_beyond_the_numbers_ends_the_run(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    mechanism = make_mechanism(noise_std=1e15)
    run_dir = new_run(mechanism=mechanism, train={"optimizer": {"type": "sgd", "lr": 1e6}}, compute=on(1))
    found = failure(run_dir, workers(1))
    assert found.message == "the loss on hold-out users is not finite after 1 steps; try a smaller learning rate"
    assert [row["step"] for row in rows(run_dir)] == [0]


@pytest.mark.parametrize("freeze_a", [False, True])
def test_a_run_does_not_go_on_from_other_initial_weights(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path, freeze_a: bool
) -> None:
    """Broken by a digest of the trained weights alone: where the first factors are frozen, those are all zero."""
    run_dir = new_run(train={"checkpoint_every": 1}, model={"adapter": {"freeze_a": freeze_a}})
    workers(1)(checks.stopped_after_release_of, run_dir, 1)
    other = copy_run(run_dir, tmp_path / "other", seed=4)
    found = failure(other, workers(1))
    assert found == Failure("the adapter's initial weights differ from those of the interrupted run", exit_code=4)


def test_training_is_importable_without_ray() -> None:
    """Broken by an import of ray in any module that the loop imports."""
    code = "import sys, harness.training.loop; sys.exit('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_base_that_looks_ahead_is_refused_before_a_record_is_read(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """A model whose tokens see the padding to their right would make one user's gradient depend on others' lengths.

    Broken by leaving out the look at what early outputs depend on.
    """
    from transformers import BertConfig, BertLMHeadModel

    folder = save_base(tmp_path / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(CHARACTERS) + 40, max_position_embeddings=256, **sizes)
    BertLMHeadModel(config).save_pretrained(folder)
    adapter = {"r": 4, "alpha": 8, "targets": ["query", "value"]}
    run_dir = new_run(folder, model={"adapter": adapter}, compute=on(0))
    found = failure(run_dir, workers(1))
    assert "it is no causal language model" in found.message
    assert found.exit_code == 2
    assert not (Folder(run_dir).private / "diagnostics.jsonl").exists()


def test_a_damaged_base_is_refused_before_a_record_is_read(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """One token's embedding is not a number. Red without the look at it: the model would be called not causal."""

    def edit(model: Any) -> None:
        model.model.embed_tokens.weight[3] = float("nan")

    run_dir = new_run(save_base(tmp_path / "damaged", edit=edit), compute=on(0))
    found = failure(run_dir, workers(1))
    assert found.message.startswith("model.base: made-up tokens already give gradients that are not finite")
    assert found.exit_code == 2
    assert not (Folder(run_dir).private / "diagnostics.jsonl").exists()
