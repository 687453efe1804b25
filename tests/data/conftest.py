"""A tokenizer of bytes, and made data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.data.corpus import Corpus, build_corpus
from harness.data.sources.base import Columns, open_source
from harness.spec.models import DataBlock


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per byte of a text, and <eos> with the id 256; believes that a text has at most 8 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", model_max_length=8)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines (objects, or raw text or bytes) to a file."""

    def write(lines: Iterable[object], name: str = "posts.jsonl") -> Path:
        path = tmp_path / name
        raw = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
        path.write_bytes(b"\n".join(raw) + b"\n")
        return path

    return write


@pytest.fixture
def make_data() -> Callable[..., DataBlock]:
    """A data block for a file."""

    def make(path: Path | str, **changes: Any) -> DataBlock:
        block: dict[str, Any] = {
            "name": "made",
            "source": {"type": "jsonl", "path": str(path)},
            "max_tokens": 16,
            "holdout": {"users": 0.25, "visibility": "public"},
        }
        return DataBlock.model_validate(block | changes)

    return make


@pytest.fixture
def build(tmp_path: Path, tokenizer: Any) -> Callable[..., Corpus]:
    """Builds (or finds) the corpus of a data block, in folders of the test."""

    def run(data: DataBlock, **changes: Any) -> Corpus:
        options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "tokenizer_digest": "bytes",
            "data": data,
            "cache_dir": tmp_path / "cache",
            "private_dir": tmp_path / "private",
        }
        return build_corpus(open_source(data, tmp_path), Columns.of(data), **(options | changes))

    return run


@pytest.fixture
def posts() -> list[dict[str, object]]:
    """Posts of 40 users, from one to five each, in mixed order."""
    return [
        {"user": f"user-{u:02d}", "text": f"post {p} of {u}: {'word ' * (u % 7)}", "plan": "free" if u % 3 else "paid"}
        for p in range(5)
        for u in range(40)
        if p <= u % 5
    ]


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and batches of a few rows, so that little data have many."""
    monkeypatch.setattr("harness.data.runs._RUN", 4000)
    monkeypatch.setattr("harness.data.tables._ROWS", 3)


@pytest.fixture
def lines() -> list[Any]:
    """Posts of 60 users in mixed order, one of whom wrote most of them; some are broken, in every way."""
    draw = random.Random(5)
    found: list[Any] = []
    for n in range(900):
        user = "loud" if n % 3 else f"üser {draw.randrange(60)}"
        post = {
            "user": user,
            "text": f"{draw.random():.3f} {'word ' * draw.randrange(9)}",
            "plan": "free",
            "at": 1000 + n,
        }
        found.append(post | ({"plan": "paid"} if n % 100 == 7 else {}))
    found[3]["text"] = found[500]["text"] = " "
    del found[41]["user"]
    found[77]["text"] = 12
    found[200] = "{not JSON"
    found[333] = ""
    found[600] = b"\xff\xfe"
    found[899]["user"] = "zoë, of whom nothing is usable"
    found[899]["text"] = ""
    return found
