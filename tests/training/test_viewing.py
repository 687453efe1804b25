"""How the base model sees users: right numbers, of one user alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.views import KeptViews, ViewWriter
from harness.errors import ArgumentError, MachineError
from harness.training import viewing
from harness.training.viewing import MOST_EXAMPLES, Viewer
from tests import families, tiny

LONGEST = 32
NORMS = {"gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm", "gpt_neox": "gpt_neox.final_layer_norm"}
"""Of families that don't call it as Llama does."""


class Made:
    """Examples of made users, some with a prompt."""

    def __init__(self, users):
        self.users = users
        self.rows = [row for user in users for row in user]

    def examples_of(self, user):
        first = sum(map(len, self.users[:user]))
        return first, first + len(self.users[user])

    def fetch(self, examples):
        pass

    def tokens(self, example):
        return np.asarray(self.rows[example], dtype=np.int32)

    def targets(self, example):
        places = np.arange(len(self.rows[example]))
        return places > (2 if len(places) % 3 == 0 else 0)


def made(seed=0, users=7, vocabulary=96):
    draw = np.random.default_rng(seed)
    sizes = [0, 1, 2, 3, MOST_EXAMPLES, MOST_EXAMPLES + 3, 5][:users]
    return Made([[draw.integers(1, vocabulary, draw.integers(4, LONGEST + 1)) for _ in range(n)] for n in sizes])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def viewer(base):
    return Viewer(base, "cpu", LONGEST)


def slowly(model, norm, rows, targets):
    """The same in float64, a token at a time where it can be."""
    losses, tails, guessed, total, tokens, hidden, count = [], [], [], 0.0, 0, 0.0, 0
    seen = []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    weights = [p.requires_grad_() for p in norm.parameters(recurse=False)]
    for row, wanted in zip(rows, targets, strict=True):
        seen.clear()
        logits = model(input_ids=torch.as_tensor(np.asarray(row)[None], dtype=torch.int64)).logits[0]
        each = []
        hits = []
        for place in range(1, len(row)):
            if wanted[place]:
                each.append(-torch.log_softmax(logits[place - 1], 0)[row[place]])
                hits.append(int(logits[place - 1].argmax()) == row[place])
        found = torch.autograd.grad(sum(each), weights)
        total = total + torch.cat([g.flatten() for g in found])
        values = sorted(float(x.detach()) for x in each)
        top = values[-max(1, len(values) // 10) :]
        losses.append(sum(values) / len(values))
        tails.append(sum(top) / len(top))
        guessed.append(sum(hits) / len(hits))
        tokens += len(each)
        hidden = hidden + seen[-1][0].sum(0)
        count += len(row)
    handle.remove()
    mean = hidden / count
    return losses, tails, guessed, float((total / tokens).norm()), (mean / mean.norm()).numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "gemma2", "qwen3"])
def test_views_equal_a_float64_loop(family, tmp_path):
    """Breaks: filling counted in the embedding; the sum in place of the mean gradient; prompts' tokens with a loss;
    logits taken for what the output layer gives (gemma2); the first layer norm in place of the last.
    """  # fmt: skip
    model = families.make_model(family, "eager" if family == "gemma2" else "sdpa")
    tiny.save_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    corpus, viewer = made(), Viewer(tmp_path, "cpu", LONGEST)
    model = model.double()
    norm = model.get_submodule(NORMS.get(family, "model.norm"))
    for user in range(1, len(corpus.users)):
        first, last = corpus.examples_of(user)
        examples = range(first, min(last, first + MOST_EXAMPLES))
        rows, targets = [corpus.tokens(e) for e in examples], [corpus.targets(e) for e in examples]
        losses, tails, guessed, gradient, embedding = slowly(model, norm, rows, targets)
        view = viewer.view(corpus, user)
        assert view.losses == pytest.approx(losses, rel=1e-4)
        assert view.tails == pytest.approx(tails, rel=1e-4)
        assert view.guessed == pytest.approx(guessed)
        assert view.gradient_norm == pytest.approx(gradient, rel=1e-3)
        assert np.abs(np.array(view.embedding) - embedding).max() < 1e-4
    assert len(viewer.view(corpus, 5).losses) == MOST_EXAMPLES


def test_a_user_without_an_example_is_seen_as_nothing(viewer):
    view = viewer.view(made(), 0)
    assert (view.losses, view.tails, view.guessed, view.gradient_norm) == ((), (), (), 0.0)
    assert view.embedding == (0.0,) * viewer.width
    assert viewer.width == 32


def test_one_users_text_changes_nobody_elses_view(viewer):
    """Bit for bit. Break: rows of two users in one forward pass, or the width of the longest example of all."""
    corpus = made()
    before = [viewer.view(corpus, user) for user in range(7)]
    for changed in (1, 4):
        users = list(corpus.users)
        users[changed] = [np.arange(1, LONGEST + 1), np.arange(5, 9)]
        after = [viewer.view(Made(users), user) for user in range(7)]
        assert [a == b for a, b in zip(before, after, strict=True)] == [user != changed for user in range(7)]


CHILD = """
import json, sys
from tests.training.test_viewing import LONGEST, Viewer, made
from pathlib import Path
viewer, corpus = Viewer(Path(sys.argv[1]), "cpu", LONGEST), made()
print(json.dumps([[user, repr(viewer.view(corpus, user))] for user in map(int, sys.argv[2:])]))
"""


def test_order_and_processes_change_nothing(viewer, base):
    """Bit for bit. Break: keep something of one user for the next (a running mean, a cache of keys and values)."""
    corpus = made()
    here = {user: repr(viewer.view(corpus, user)) for user in range(7)}
    assert {user: repr(viewer.view(corpus, user)) for user in reversed(range(7))} == here
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    found = {}
    for part in ("530", "4162"):
        command = [sys.executable, "-c", CHILD, str(base), *part]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found |= dict(json.loads(done.stdout.splitlines()[-1]))
    assert found == here


def test_what_is_not_finite_counts_as_nothing(base, tmp_path):
    """A token whose embedding is not a number; others are seen as ever. Break: let it through, or raise."""

    def damage(model):
        model.model.embed_tokens.weight[90] = float("nan")

    viewer = Viewer(tiny.save_base(tmp_path, edit=damage), "cpu", LONGEST)
    whole = Viewer(base, "cpu", LONGEST)
    fine, bad = np.arange(1, 20), np.array([3, 4, 90, 5, 6])
    corpus = Made([[fine, bad], [bad], [fine]])
    mixed, alone, untouched = (viewer.view(corpus, user) for user in range(3))
    assert mixed.losses[1] == mixed.tails[1] == mixed.guessed[1] == 0.0
    assert mixed.losses[0] == whole.view(corpus, 0).losses[0] > 0
    assert alone.losses == (0.0,)
    for view in (mixed, alone):
        assert view.gradient_norm == 0.0
        assert set(view.embedding) == {0.0}
    assert untouched == whole.view(corpus, 2)


def test_a_model_without_a_last_norm_is_refused(base, monkeypatch):
    """Before any record is read. Break: take any layer."""

    def bare(folder, dtype, sharding):
        model = families.make_model("llama")
        for module in list(model.modules()):
            for child, inner in list(module.named_children()):
                if "RMSNorm" in type(inner).__name__:
                    setattr(module, child, torch.nn.Identity())
        return model

    monkeypatch.setattr(viewing, "load_base", bare)
    with pytest.raises(ArgumentError, match=r"^model\.base: has no layer norm with weights"):
        Viewer(base, "cpu", LONGEST)


def test_a_model_that_does_not_fit_is_said_so_before_a_record_is_read(base, monkeypatch):
    def full(folder, dtype, sharding):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(viewing, "load_base", full)
    with pytest.raises(MachineError, match="does not fit into this GPU in float32"):
        Viewer(base, "cpu", LONGEST)


def test_what_is_kept_is_what_was_seen(viewer, tmp_path):
    """And is its owner's alone. Break: float16, another order, 0644."""
    corpus = made()
    views = [viewer.view(corpus, user) for user in range(7)]
    counts = [len(view.losses) for view in views]
    with ViewWriter(tmp_path / "views", counts, viewer.width, "a model 1") as writer:
        for view in views:
            writer.append(view)
        assert not (tmp_path / "views").exists()  # whole or not at all
    kept = KeptViews(tmp_path / "views")
    assert (kept.width, kept.identity) == (32, "a model 1")
    for user, view in enumerate(views):
        found = kept(user)
        assert found.losses == view.losses
        assert (found.tails, found.guessed, found.gradient_norm) == (view.tails, view.guessed, view.gradient_norm)
        assert found.embedding == pytest.approx(view.embedding, abs=1e-7)
    for path in (tmp_path / "views").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "views").stat().st_mode & 0o777 == 0o700
    (tmp_path / "views" / "embeddings.npy").write_bytes(b"half a file")
    with pytest.raises(MachineError, match="is damaged"):
        KeptViews(tmp_path / "views")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), ViewWriter(tmp_path / "views", [1, 0], 4, "x"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with ViewWriter(tmp_path / "views", [], 4, "x"):
        pass
    assert KeptViews(tmp_path / "views").width == 4
