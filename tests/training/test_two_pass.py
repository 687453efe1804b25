"""All parameters trained, in real worker processes: the weights of a plain loop over users, and noise exactly once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import ArgumentError
from harness.privacy.mechanism import AdaptiveClip, Mechanism
from harness.privacy.randomness import Randomness
from harness.training import two_pass
from harness.training.checkpoints import load_newest
from harness.training.job import Folder
from tests.tiny import CHARACTERS, KEY, copy_run, made_posts, make_mechanism, make_run, save_base
from tests.training import checks
from tests.training.reference import Reference, train_plainly
from tests.training.whole import save_family

FULL = {"adapter": {"type": "full"}}
SGD = {"type": "sgd", "lr": 0.5, "momentum": 0.9}
ADAMW = {"type": "adamw", "lr": 1e-3}
CLIPS = (3.3, 4.0)
"""Around the norms of the tiny models' units."""
TIGHT = 70
"""Tokens of a micro-batch of two rows: most users go on from one to the next."""
EVERYWHERE = [(world, stage) for world in (1, 2) for stage in (0, 1, 2, 3)]


def on(stage: int, **compute: Any) -> dict[str, Any]:
    return {"deepspeed": {"stage": stage}, **compute}


def mechanism(**changes: Any) -> Mechanism:
    return make_mechanism(**{"clip_norms": CLIPS, "steps": 3, **changes})


def error_of(found: checks.Weights, expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of a weight."""
    assert set(found) == set(expected)
    return max(float(np.abs(found[name] - value.numpy()).max()) for name, value in expected.items())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny base model of a family."""
    known: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in known:
            known[family] = save_family(tmp_path_factory.mktemp("families") / family, family)
        return known[family]

    return get


@pytest.fixture(scope="module")
def expected(
    bases: Callable[[str], Path], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Reference]:
    """The plain reference of a family's run without noise."""
    known: dict[str, Reference] = {}

    def get(family: str) -> Reference:
        if family not in known:
            run_dir = tmp_path_factory.mktemp("reference") / "run"
            make_run(run_dir, bases(family), cache=cache, mechanism=mechanism(), model=FULL, train={"optimizer": SGD})
            known[family] = train_plainly(run_dir)
        return known[family]

    return get


# --- the same as one plain process --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "stage"), [*EVERYWHERE, *(pytest.param(4, stage, marks=pytest.mark.slow) for stage in (2, 3))]
)
def test_the_weights_equal_a_loop_over_users(
    expected: Callable[[str], Reference],
    bases: Callable[[str], Path],
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
    world: int,
    stage: int,
) -> None:
    """Three steps of a tied Llama, to 5e-6, with units that are cut by micro-batches and with whole ones.

    Seen red: factors of other units of the micro-batch.
    """
    wanted = expected("llama")
    norms = [pair for step in wanted.norms for pair in step]
    assert any(norm > 1.05 * clip for norm, clip in norms)
    assert any(norm < clip / 1.05 for norm, clip in norms)
    runs = [
        new_run(
            bases("llama"),
            mechanism=mechanism(),
            model=FULL,
            train={"optimizer": SGD},
            compute=on(stage, microbatch_tokens=budget),
        )
        for budget in (TIGHT, 400)
    ]
    for rank in workers(world)(checks.trained, runs):
        for before, after in rank:
            assert error_of(before, wanted.initial) == 0
            assert error_of(after, wanted.final) < 5e-6
    moved = max(float((wanted.final[n] - wanted.initial[n]).abs().max()) for n in wanted.final)
    assert moved > 1e-2


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("opt", "gpt_neox"))]
)
def test_other_families(
    expected: Callable[[str], Reference],
    bases: Callable[[str], Path],
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
    family: str,
) -> None:
    """Learned positions, biases, GPT-2's transposed layers."""
    runs = [
        new_run(
            bases(family),
            mechanism=mechanism(),
            model=FULL,
            train={"optimizer": SGD},
            compute=on(stage, microbatch_tokens=TIGHT),
        )
        for stage in (1, 3)
    ]
    for rank in workers(2)(checks.trained, runs):
        for _, after in rank:
            assert error_of(after, expected(family).final) < 1e-5


def test_a_cut_units_norm_is_no_smaller_for_rounding() -> None:
    """Its parts may cancel each other; the same norm in each. Seen red: without what rounding may have taken."""
    parts: list[Any] = [
        (SimpleNamespace(norms=torch.zeros(2).double(), errors=torch.tensor([0.5, 0.25]).double()), slot)
        for slot in (1, 0)
    ]
    two_pass._complete(parts, torch.tensor(2.0).double())
    assert [one.norms.tolist() for one, _ in parts] == [[0.0, 2.75], [2.75, 0.0]]


LEVERS: dict[str, dict[str, Any]] = {
    "adaptive": {"adaptive": AdaptiveClip(quantile=0.4, learning_rate=1.5, bit_noise_std=0.8)},
    "examples": {"sampling_unit": "example", "examples_per_user": 3, "users": (9.0, 5.0)},
}


@pytest.mark.parametrize("lever", LEVERS)
def test_levers(
    new_run: Callable[..., Path], bases: Callable[[str], Path], workers: Callable[[int], Any], lever: str
) -> None:
    """An adaptive clip, whose bits are counted once per unit, and sampled examples; with the same noise.

    Seen red: bits of a cut unit counted in each of its micro-batches.
    """
    runs = [
        new_run(
            bases("llama"),
            mechanism=mechanism(noise_std=0.05, **LEVERS[lever]),
            model=FULL,
            train={"optimizer": SGD},
            compute=on(stage, microbatch_tokens=TIGHT),
        )
        for stage in (0, 3)
    ]
    wanted = train_plainly(runs[0])
    for rank in workers(2)(checks.trained, runs):
        for _, after in rank:
            assert error_of(after, wanted.final) < 5e-6
    for run_dir in runs:
        checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
        assert checkpoint is not None
        assert checkpoint.clip_factor == pytest.approx(wanted.factors[-1], rel=1e-12)


@pytest.mark.slow
def test_gradient_checkpointing_and_offload_change_nothing(
    expected: Callable[[str], Reference],
    bases: Callable[[str], Path],
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
) -> None:
    runs = [
        new_run(
            bases("llama"), mechanism=mechanism(), model=FULL, train={"optimizer": SGD},
            compute={"microbatch_tokens": TIGHT, **compute},
        )
        for compute in (
            {"gradient_checkpointing": True, "deepspeed": {"stage": 1}},
            {"gradient_checkpointing": True, "deepspeed": {"stage": 3}},
            {"deepspeed": {"stage": 2, "offload": "optimizer"}},
            {"deepspeed": {"stage": 3, "offload": "parameters"}},
        )
    ]  # fmt: skip
    for rank in workers(2)(checks.trained, runs):
        for _, after in rank:
            assert error_of(after, expected("llama").final) < 5e-6


# --- who is not finite, and who is not there ----------------------------------------------------------------


@pytest.mark.parametrize("budget", [TIGHT, 400])
def test_a_user_whose_loss_is_not_finite_harms_nobody(
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
    tmp_path: Path,
    budget: int,
) -> None:
    """The embedding of "q" is not a number, and one user wrote it.

    Seen red (DeepSpeed leaves the step out): a factor of zero times that user's gradient.
    """

    def edit(model: Any) -> None:
        model.model.embed_tokens.weight[CHARACTERS.index("q")] = float("nan")

    ill_base = save_base(tmp_path / "ill", edit=edit)
    posts = made_posts(12)
    for post in posts:
        post["text"] = post["text"].replace("q", "k")
        if post["user"] == "user-004":
            post["text"] += " q"
    runs = [
        new_run(
            ill_base,
            posts=posts,
            mechanism=mechanism(steps=2, rates=(1.0, 1.0)),
            data={"holdout": {"users": 0.0}},
            evaluation={"users": 1},
            model=FULL,
            train={"optimizer": SGD},
            compute=on(stage, microbatch_tokens=budget),
        )
        for stage in (1, 3)
    ]
    wanted = train_plainly(runs[0])
    assert sum(not np.isfinite(norm) for step in wanted.norms for norm, _ in step) == 2
    for rank in workers(2)(checks.whole_updates, runs, 2):
        for weights in rank:
            for name, value in wanted.final.items():
                np.testing.assert_allclose(weights[-1][name], value.numpy(), rtol=5e-6, atol=5e-6)


# --- noise --------------------------------------------------------------------------------------------------


def drawn(found: Mechanism, step: int, name: str, size: int) -> Any:
    """What a step adds to a parameter for noise, before the optimizer: float64."""
    return found.noise_std * Randomness(KEY).normals("noise", step, name, 0, size) / found.denominator(step)


@pytest.mark.parametrize(("world", "stage"), [*EVERYWHERE, pytest.param(4, 1, marks=pytest.mark.slow)])
def test_noise_is_added_exactly_once(
    new_run: Callable[..., Path], bases: Callable[[str], Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """Of the update of all workers together, each coordinate has its own draw, once: steps with noise less those
    without, and steps of nobody. To the float32 rounding of the weights.

    Seen red: noise by the coordinate in the shard.
    """
    sgd = {"optimizer": {"type": "sgd", "lr": 1.0}}
    options: dict[str, Any] = {"model": FULL, "train": sgd, "compute": on(stage, microbatch_tokens=TIGHT)}
    somebody = mechanism(noise_std=0.7, steps=1)
    nobody = mechanism(noise_std=0.7, steps=2, rates=(1e-8, 1e-8), users=(2e9, 1e9))
    runs = [
        new_run(bases("llama"), mechanism=one, **options)
        for one in (somebody, mechanism(noise_std=0.0, steps=1), nobody)
    ]
    for rank in workers(world)(checks.whole_updates, runs[:2], 1):
        (before, noisy), (_, exact) = rank
        for name, value in before.items():
            noise = exact[name].astype(np.float64) - noisy[name]
            np.testing.assert_allclose(noise.reshape(-1), drawn(somebody, 0, name, value.size), atol=3e-6, rtol=0)
            assert np.abs(value - exact[name]).max() > 1e-5
    for ((first, second, third),) in workers(world)(checks.whole_updates, runs[2:], 2):
        for step, (old, new) in enumerate(((first, second), (second, third))):
            for name, value in old.items():
                noise = value.astype(np.float64) - new[name]
                np.testing.assert_allclose(noise.reshape(-1), drawn(nobody, step, name, value.size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_worker_draws_its_own_shard_alone(
    new_run: Callable[..., Path], bases: Callable[[str], Path], workers: Callable[[int], Any], stage: int
) -> None:
    run_dir = new_run(bases("llama"), mechanism=mechanism(noise_std=0.7), model=FULL, compute=on(stage))
    ranks = workers(2)(checks.stretches, run_dir)
    every = sorted((name, place) for rank in ranks for name, start, n in rank for place in range(start, start + n))
    assert len(set(every)) == len(every)  # nobody draws what another one draws
    (weights,) = workers(1)(checks.whole_updates, [new_run(bases("llama"), model=FULL)], 0)
    assert len(every) == sum(value.size for value in weights[0][0].values())
    shares = [sum(n for _, _, n in rank) for rank in ranks]
    assert max(shares) < 0.6 * sum(shares)


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_noise_is_added_exactly_once_to_small_parameters_that_zero_3_keeps_whole(
    new_run: Callable[..., Path], bases: Callable[[str], Path], workers: Callable[[int], Any], world: int
) -> None:
    """With DeepSpeed's own threshold, below which every rank has a parameter whole, though its optimizer has a part.

    Weights equal a loop over users, too. Seen red: every stretch noised as if it were the first.
    """
    options: dict[str, Any] = {
        "model": FULL,
        "train": {"optimizer": {"type": "sgd", "lr": 1.0}},
        "compute": on(3, microbatch_tokens=TIGHT),
    }
    noisy_one = mechanism(noise_std=0.7, steps=1)
    runs = [new_run(bases("llama"), mechanism=one, **options) for one in (noisy_one, mechanism(steps=1, noise_std=0.0))]
    wanted = train_plainly(runs[1])
    for kept, ((before, noisy), (_, exact)) in workers(world)(checks.updates_of_kept_parameters, runs):
        assert set(kept) == set(before)
        assert error_of(exact, wanted.final) < 5e-6
        for name, value in before.items():
            noise = exact[name].astype(np.float64) - noisy[name]
            np.testing.assert_allclose(noise.reshape(-1), drawn(noisy_one, 0, name, value.size), atol=3e-6, rtol=0)


# --- going on -----------------------------------------------------------------------------------------------


def prepared(target: Path, base: Path, cache: Path, stage: int, **more: Any) -> Path:
    return make_run(
        target,
        base,
        cache=cache,
        mechanism=mechanism(steps=4, noise_std=0.3),
        train={"checkpoint_every": 2, "optimizer": ADAMW},
        compute=on(stage, microbatch_tokens=TIGHT),
        model=FULL,
        **more,
    )


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_comes_to_the_same_weights_bit_for_bit(
    tmp_path: Path, bases: Callable[[str], Path], cache: Path, workers: Callable[[int], Any], stage: int
) -> None:
    undisturbed = prepared(tmp_path / "undisturbed", bases("llama"), cache, stage)
    assert workers(2)(checks.train, undisturbed) == [None, None]
    stopped = prepared(tmp_path / "stopped", bases("llama"), cache, stage)
    workers(2)(checks.stopped_after_release_of, stopped, 2)
    assert not Folder(stopped).model.exists()
    assert workers(2)(checks.train, stopped) == [None, None]
    first, second = (load_newest(Folder(run).checkpoints("private")) for run in (undisturbed, stopped))
    assert first is not None
    assert second is not None
    assert (first.step, first.optimizer_steps) == (second.step, second.optimizer_steps) == (4, 4)
    for held, other in ((first.parameters, second.parameters), (first.optimizer, second.optimizer)):
        assert set(held) == set(other)
        assert all(torch.equal(held[name], other[name]) for name in held)


def test_a_checkpoint_moves_between_stages_and_numbers_of_workers(
    tmp_path: Path, bases: Callable[[str], Path], cache: Path, workers: Callable[[int], Any]
) -> None:
    """To 5e-6; sums come in another order."""
    run_dir = prepared(tmp_path / "run", bases("llama"), cache, 3)
    workers(2)(checks.stopped_after_release_of, run_dir, 2)
    places = {(1, 0), (2, 1), (1, 3)}
    ends = []
    for world, stage in places:
        moved = copy_run(run_dir, tmp_path / f"moved-{world}-{stage}", compute=on(stage))
        workers(world)(checks.train, moved)
        ends.append(load_newest(Folder(moved).checkpoints("private")))
    for end in ends[1:]:
        assert ends[0] is not None
        assert end is not None
        assert end.step == 4
        for name, value in ends[0].parameters.items():
            torch.testing.assert_close(end.parameters[name], value, rtol=0, atol=5e-6)


# --- what comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "stage"), [pytest.param("llama", 3, marks=pytest.mark.slow), ("gpt2", 0)])
def test_the_model_that_is_saved_is_the_one_that_was_trained(
    tmp_path: Path,
    bases: Callable[[str], Path],
    cache: Path,
    workers: Callable[[int], Any],
    family: str,
    stage: int,
) -> None:
    """Plain transformers loads it, bit for bit, with its tokenizer; the ordinary series is there for comparison."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir = prepared(
        tmp_path / "run", bases(family), cache, stage, data={"visibility": "public"}, evaluation={"ordinary": True}
    )
    assert workers(2)(checks.train, run_dir) == [None, None]
    folder = Folder(run_dir)
    assert not folder.adapter.exists()
    assert {path.stat().st_mode & 0o777 for path in folder.model.iterdir()} == {0o644}
    checkpoint = load_newest(folder.checkpoints("private"))
    assert checkpoint is not None
    model: Any = AutoModelForCausalLM.from_pretrained(folder.model)
    found = dict(model.named_parameters())
    assert set(found) == set(checkpoint.parameters)
    for name, value in checkpoint.parameters.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value)
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    encoded = tokenizer("tide lamp", return_tensors="pt", add_special_tokens=False)
    assert model.generate(input_ids=encoded["input_ids"], max_new_tokens=3).shape[1] == 9 + 3
    assert load_newest(folder.checkpoints("ordinary")) is not None


@pytest.mark.parametrize(("device", "stage", "workers"), [("cpu", 0, 2), ("cuda", 0, 1), ("cuda", 1, 2)])
def test_one_noise_per_sum_goes(device: str, stage: int, workers: int) -> None:
    two_pass.check_one_noise(device, stage, workers)


def test_two_noises_for_one_sum_are_refused() -> None:
    """Red when stage 0 on several GPUs, which may draw differently, is let through."""
    with pytest.raises(ArgumentError, match=r"compute\.deepspeed\.stage: 0 does not go with"):
        two_pass.check_one_noise("cuda", 0, 2)
