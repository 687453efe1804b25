"""Files larger than memory: a corpus is built within a limit that a part of them would break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.launching import ROOT

MEGABYTE = 1 << 20
LIMIT = 128
"""Megabytes that a build may take, on top of what Python and its libraries have."""

# In a process of its own: a limit can't be lifted, and what other tests left behind would count.
BUILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet
from harness.data.corpus import build_corpus
from harness.data.sources.base import Columns, open_source
from harness.spec.models import DataBlock

class Tokenizer:
    eos_token_id = 256
    def __call__(self, texts, **options):
        return {"input_ids": [np.frombuffer(text.encode()[::4], np.uint8) for text in texts]}

path, limit = Path(sys.argv[1]), int(sys.argv[2])
pyarrow.set_cpu_count(1)
pyarrow.set_io_thread_count(1)  # the stack of a thread counts as well, and how many there are is a matter of luck
data = DataBlock.model_validate(json.loads(sys.argv[3]))
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
made = build_corpus(
    open_source(data, path.parent), Columns.of(data), tokenizer=Tokenizer(), tokenizer_digest="every fourth byte",
    data=data, cache_dir=path.parent / "cache", private_dir=None,
)
print(made.n_users, made.n_records.sum(), made.n_tokens.sum(), made.bad_records)
"""


def build(path: Path, form: dict[str, object], limit: int = LIMIT) -> subprocess.CompletedProcess[str]:
    data = {
        "name": "large", "source": {"type": path.suffix[1:], "path": path.name}, "max_tokens": 512,
        "holdout": {"users": 0, "visibility": "public"}, **form,
    }  # fmt: skip
    command = [sys.executable, "-c", BUILD, str(path), str(limit * MEGABYTE), json.dumps(data)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MALLOC_ARENA_MAX": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    return subprocess.run(command, env=environment, cwd=path.parent, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is mapped on Linux alone")
@pytest.mark.parametrize("form", ["csv", *(pytest.param(f, marks=pytest.mark.slow) for f in ("jsonl", "parquet"))])
def test_one_users_many_records_and_a_file_larger_than_memory(form: str, tmp_path: Path) -> None:
    """Break: collect a user's records, or the whole file, in a list."""
    path, text = tmp_path / f"large.{form}", "word " * 1600
    records = 3 * LIMIT * MEGABYTE // 2 // len(text)
    users = ["one" if n % 10 else f"u{n}" for n in range(records)]  # nine in ten records are one user's
    if form == "parquet":  # one row group, as large as the file
        draw = np.random.default_rng(0)
        texts = [draw.integers(97, 123, len(text), dtype=np.uint8).tobytes().decode() for _ in users]
        parquet.write_table(pa.table({"user": users, "text": texts}), path, row_group_size=records, compression="none")
        del texts
    else:
        with path.open("w") as file:
            file.write("user,prompt,text\n" if form == "csv" else "")
            for user in users:
                file.write(f"{user},q,{text}\n" if form == "csv" else f'{{"user":"{user}","text":"{text}"}}\n')
    assert path.stat().st_size > 1.4 * LIMIT * MEGABYTE
    pair: dict[str, object] = {"text": {"prompt": "prompt", "completion": "text"}} if form == "csv" else {}
    answer = build(path, pair)
    assert answer.returncode == 0, answer.stderr
    there, found, _, bad = map(int, answer.stdout.split())
    assert (there, found, bad) == (1 + -(-records // 10), records, 0)
    path.unlink()
