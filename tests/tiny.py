"""A whole training job in miniature: a two-layer Llama with random weights, a tokenizer of characters, made users."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.corpus import Corpus, build_corpus
from harness.data.sources.base import Columns, open_source
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import create_key
from harness.spec.models import Spec
from harness.training.job import Folder, Job

KEY = bytes(range(32))
"""The fixed key of statistical tests; nothing outside tests has one."""

GROUPS = ("free", "paid")
"""Privacy groups: the values of the users' attribute ``plan``."""

EOS = "<eos>"
CHARACTERS = [chr(c) for c in range(33, 127)] + ["Ġ"]
VOCABULARY = 128


def save_tokenizer(folder: Path) -> Any:
    """A tokenizer with one token per ASCII character and ``<eos>`` (95), saved where `AutoTokenizer` finds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(CHARACTERS)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_base(
    folder: Path, *, tied: bool = False, seed: int = 0, edit: Callable[[Any], None] = lambda model: None
) -> Path:
    """A base model as a folder: config, float32 weights and tokenizer.

    Args:
        folder: Where; it is made.
        tied: Input and output embeddings are one matrix.
        seed: Of the random weights.
        edit: Changes the model before it is saved; gradients are off.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    eos = save_tokenizer(folder).eos_token_id
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        edit(model)
    model.save_pretrained(folder)
    return folder


def made_posts(users: int = 40, *, longest: int = 3) -> list[dict[str, str]]:
    """Texts of users who wrote between one and five of them, from a few characters to some hundred."""
    words = ["tide", "lamp", "orchard", "seven", "quiet", "ember", "north", "willow", "clay", "drift", "anvil", "moss"]
    posts = []
    for u in range(users):
        for p in range(1 + u % 5):
            count = 1 + (7 * u + 11 * p) % (6 * longest)
            text = " ".join(words[(u * 5 + p * 3 + k * (1 + u % 7)) % len(words)] for k in range(count))
            posts.append({"user": f"user-{u:03d}", "text": text, "plan": GROUPS[u % 3 == 0]})
    return posts


def write_posts(path: Path, posts: Iterable[Mapping[str, str]]) -> Path:
    """Writes posts as JSON Lines."""
    path.write_text("".join(json.dumps(post) + "\n" for post in posts))
    return path


def make_spec(base: Path, posts: Path, **changes: Any) -> Spec:
    """A spec for the tiny model. `changes` are merged into the blocks: ``compute={"workers": 2}``."""
    document: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "seed": 3,
        "data": {
            "name": "made",
            "source": {"type": "jsonl", "path": str(posts)},
            "attributes": ["plan"],
            "max_tokens": 32,
            "holdout": {"users": 0.3, "visibility": "public"},
        },
        "model": {
            "base": str(base),
            "dtype": "float32",
            "adapter": {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "freeze_a": False},
        },
        "segmentation": {"type": "attribute", "column": "plan"},
        "privacy": {"epsilon": 8, "delta": 1e-5},
        "sampling": {"expected": 8, "examples_per_user": 4},
        "clipping": {"norm": 0.5},
        "train": {"steps": 3, "optimizer": {"type": "adamw", "lr": 1e-2}, "checkpoint_every": 1},
        "compute": {
            "workers": 1,
            "accelerator": "cpu",
            "deepspeed": {"stage": 0},
            "microbatch_tokens": 160,
            "retries": 0,
        },
        "evaluation": {"users": 8, "ordinary": False},
        "report": {"html": False},
    }
    return Spec.model_validate(_merged(document, changes))


def _merged(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(document)
    if changes.get("type", "lora") != result.get("type", "lora") or changes.get("type") == "full":
        result = {}  # another kind of thing, with keys of its own
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def make_mechanism(
    *,
    steps: int = 3,
    noise_std: float = 0.0,
    rates: Sequence[float] = (0.4, 0.4),
    clip_norms: Sequence[float] = (0.3, 0.8),
    users: Sequence[float] = (21.0, 11.0),
    examples_per_user: int = 4,
    group_steps: Sequence[int] | None = None,
    **levers: Any,
) -> Mechanism:
    """A mechanism over the groups `GROUPS`. Its public counts are constants, on purpose not those of the data.

    `group_steps` are T_p, by default all steps; `levers` are more fields of the Mechanism.
    """
    groups = tuple(
        GroupMechanism(name, n, q, c, t, examples_per_user)
        for name, n, q, c, t in zip(GROUPS, users, rates, clip_norms, group_steps or (steps, steps), strict=True)
    )
    return Mechanism(steps=steps, noise_std=noise_std, groups=groups, relation="zero_out", **levers)


@functools.cache
def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def make_corpus(spec: Spec, base: Path, cache: Path) -> Corpus:
    """The corpus of a spec's data."""
    return build_corpus(
        open_source(spec.data, cache),
        Columns.of(spec.data),
        tokenizer=_tokenizer(base),
        tokenizer_digest="characters",
        data=spec.data,
        cache_dir=cache,
        private_dir=None,
    )


def make_run(
    run_dir: Path,
    base: Path,
    *,
    mechanism: Mechanism | None = None,
    posts: Iterable[Mapping[str, str]] | None = None,
    key: bytes = KEY,
    cache: Path | None = None,
    holdout_users: tuple[float, ...] | None = None,
    **changes: Any,
) -> Path:
    """A run's folder as it is just before training: ``harness.training.loop.train(run_dir)`` can begin.

    Args:
        run_dir: Where; it is made.
        base: From `save_base`.
        mechanism: What to execute; None: `make_mechanism()`.
        posts: The users' texts; None: `made_posts()`.
        key: The run's secret key.
        cache: Where corpora are kept; None: beside the run.
        holdout_users: Public numbers of private hold-out users, per group.
        **changes: To the spec, as for `make_spec`.
    """
    folder = Folder(run_dir)
    folder.private.mkdir(parents=True, mode=0o700)
    cache = cache or run_dir.parent / "cache"
    written = write_posts(folder.private / "posts.jsonl", made_posts() if posts is None else posts)
    mechanism = mechanism or make_mechanism()
    steps = changes.setdefault("train", {})
    changes["train"] = {**steps, "steps": mechanism.steps}
    spec = make_spec(base, written, **changes)
    corpus = make_corpus(spec, base, cache)
    curve = tuple((t, 0.1 * t) for t in range(mechanism.steps + 1))
    Job(spec, mechanism, curve, corpus.folder, base, "cpu", holdout_users).save(run_dir)
    groups = [GROUPS.index(str(corpus.attributes(u)["plan"])) for u in range(corpus.n_users)]
    np.save(folder.members, np.array(groups, dtype=np.int16), allow_pickle=False)
    create_key(folder.key, key)
    return run_dir


def copy_run(run_dir: Path, target: Path, **changes: Any) -> Path:
    """A copy of a run, key and checkpoints included, whose spec differs by `changes`."""
    shutil.copytree(run_dir, target)
    path = Folder(target).private / "job.json"
    document = json.loads(path.read_text())
    document["spec"] = _merged(document["spec"], changes)
    path.write_text(json.dumps(document))
    return target
