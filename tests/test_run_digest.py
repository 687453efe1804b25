"""What a resumed run must have in common with the interrupted one: every field by itself is refused by its name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.data.store import Corpus
from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.running.folders import TRAINED, check_promise, check_same, guarantee_of, run_digest, run_parts
from harness.training.job import Folder
from harness.training.model import Base, find_base
from tests.launching import Workplace
from tests.tiny import make_corpus, make_spec, save_base

CHANGED = {
    "train.optimizer.lr=0.02": "optimizer",
    "train.optimizer={type: sgd, lr: 0.01}": "optimizer",
    "train.optimizer.weight_decay=0.1": "optimizer",
    "train.optimizer.betas=[0.8, 0.9]": "optimizer",
    "train.optimizer.eps=1e-6": "optimizer",
    "train.checkpoint_every=2": "checkpoint_every",
    "seed=5": "seed",
    "model.dtype=bfloat16": "adapter",
    "model.adapter.r=2": "adapter",
    "model.adapter.alpha=4": "adapter",
    "model.adapter.targets=[q_proj]": "adapter",
    "model.adapter.dropout=0.1": "adapter",
    "evaluation.users=3": "evaluation",
    "audit={reconstruction: {}}": "audit",
    "train.steps=4": "mechanism and guarantee",
    "clipping.norm=0.4": "mechanism and guarantee",
    "sampling.expected=7": "mechanism and guarantee",
    "sampling.examples_per_user=1": "mechanism and guarantee",
    "privacy.epsilon=7": "mechanism and guarantee",
    "privacy.delta=1e-6": "mechanism and guarantee",
    "noise={type: scale, epsilon: {free: 8, paid: 4}}": "mechanism and guarantee",
    "segmentation={type: none}": "mechanism and guarantee and segmentation",
}
COMPUTE = (
    "compute.workers=3",
    "compute.workers={min: 1, max: 4}",
    "compute.deepspeed.stage=3",
    "compute.deepspeed={stage: 2, offload: optimizer}",
    "compute.microbatch_tokens=64",
    "compute.gradient_checkpointing=true",
    "compute.retries=9",
    "compute.prepare={engine: ray, blocks: 3}",
    "report.html=true",
)


@dataclasses.dataclass(frozen=True)
class Begun:
    """An interrupted run, as far as its digest goes."""

    place: Workplace
    folder: Folder
    corpus: Corpus
    base: Base

    def go_on(self, *overrides: str, corpus: Corpus | None = None, base: Base | None = None) -> None:
        """What a resumed run does first."""
        plan = make_plan(str(self.place.spec), overrides)
        check_same(self.folder, run_parts(plan, corpus or self.corpus, base or self.base))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    root = tmp_path_factory.mktemp("begun")
    place = Workplace(root / "place")
    plan = make_plan(str(place.spec))
    corpus = make_corpus(plan.spec, place.base, root / "cache")
    base = find_base(str(place.base), root, root)
    parts = run_parts(plan, corpus, base)
    folder = Folder(root / "run")
    folder.private.mkdir(parents=True)
    document = {"status": "interrupted", "run_digest": run_digest(parts), "parts": parts}
    (folder.private / "run.json").write_text(json.dumps(document))
    folder.key.write_bytes(bytes(32))
    yield Begun(place, folder, corpus, base)
    place.clean()


@pytest.mark.parametrize("change", COMPUTE)
def test_what_only_changes_speed_may_change(begun: Begun, change: str) -> None:
    """Red with `compute` in the digest."""
    begun.go_on(change)
    plan = make_plan(str(begun.place.spec), [change])
    now = run_digest(run_parts(plan, begun.corpus, begun.base))
    assert now == json.loads((begun.folder.private / "run.json").read_text())["run_digest"]


@pytest.mark.parametrize("change", CHANGED)
def test_what_changes_a_release_is_refused_by_its_name(begun: Begun, change: str) -> None:
    """Broken by leaving that part out of `run_parts`."""
    with pytest.raises(ArgumentError) as caught:
        begun.go_on(change)
    assert caught.value.exit_code == 2
    assert f"was begun with another {CHANGED[change]}: it can't be resumed with this spec" in str(caught.value)


def test_other_data_model_or_tokenizer_are_refused(begun: Begun, tmp_path: Path) -> None:
    """A word of a text, a weight of the base, the tokenizer. Broken by leaving their digests out."""
    posts = begun.place.posts.read_text().replace("tide", "tidy", 1)
    assert posts != begun.place.posts.read_text()
    (tmp_path / "posts.jsonl").write_text(posts)
    spec = make_spec(begun.place.base, tmp_path / "posts.jsonl")
    other = Base(save_base(tmp_path / "base", seed=1), "")
    told = Base(tmp_path / "told", "")
    shutil.copytree(begun.base.folder, told.folder)
    (told.folder / "tokenizer_config.json").write_text("{}")  # a file of the model's folder, too
    changes: dict[str, Callable[[], None]] = {
        "data": lambda: begun.go_on(corpus=make_corpus(spec, begun.place.base, tmp_path / "cache")),
        "model": lambda: begun.go_on(base=other),
        "model and tokenizer": lambda: begun.go_on(base=told),
    }
    for part, go_on in changes.items():
        with pytest.raises(ArgumentError, match=f"was begun with another {part}: it can't be resumed"):
            go_on()
    begun.go_on()


@pytest.mark.parametrize(
    "change",
    ["audit.one_run.guesses=20", "audit.confidence=0.5", "audit.extraction=null", "audit.user_inference={}"],
)
def test_guesses_are_not_changed_after_a_look_at_their_answers(begun: Begun, tmp_path: Path, change: str) -> None:
    """A run that was interrupted in its audit has left answers. Red with `audit` left out of `check_promise`."""
    audit = ["audit={one_run: {canaries: 40, guesses: 10}, extraction: {secrets: 4}}"]
    plan = make_plan(str(begun.place.spec), audit)
    folder = Folder(tmp_path / "run")
    folder.private.mkdir(parents=True)
    stated = guarantee_of(plan, folder).document(TRAINED, plan.mechanism.steps)
    parts = run_parts(plan, begun.corpus, begun.base)
    for path, document in (
        (folder.root / "privacy.json", stated),
        (folder.root / "plan.json", plan.document()),
        (folder.private / "run.json", {"status": TRAINED, "parts": parts}),
    ):
        path.write_text(json.dumps(document))
    check_promise(plan, folder)
    with pytest.raises(ArgumentError, match="trained with another audit block: it can't be finished with this spec"):
        check_promise(make_plan(str(begun.place.spec), [*audit, change]), folder)
