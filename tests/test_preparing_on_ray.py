"""Preparation through Ray Data: the same corpus, nothing of a record with Ray, and what is done after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.data.corpus import build_corpus
from harness.data.preparing import Sharding
from harness.data.preparing_ray import task
from harness.data.sources.base import Columns, open_source
from harness.running import preparing
from harness.spec.compute_block import PrepareBlock
from harness.spec.models import DataBlock
from tests.launching import ROOT

SECRET = "my-heart-is-a-SECRET"

BUILD = """
import json, os, sys
from pathlib import Path
from harness.data.corpus import build_corpus
from harness.data.sources.base import Columns, open_source
from harness.errors import UserError
from harness.running.preparing import sharding_of
from harness.spec.compute_block import PrepareBlock
from harness.spec.models import DataBlock
from slow_bytes import Bytes

data, cache, engine = DataBlock.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
source = open_source(data, cache)
try:
    corpus = build_corpus(
        source, Columns.of(data), tokenizer=Bytes(), tokenizer_digest="b", data=data, cache_dir=cache,
        private_dir=cache / "private", sharding=sharding_of(PrepareBlock(engine=engine, blocks=6), source),
    )
    print(corpus.folder)
except UserError as error:
    print(error.exit_code, error)
"""

TOKENIZER = """
import os, signal, sys, time
SECONDS, FAULT = float(os.environ.get("SLOW_SECONDS", 0)), os.environ.get("SLOW_FAULT")

class Bytes:
    eos_token_id = 256

    def __call__(self, text, **options):
        time.sleep(SECONDS)
        print(text[0])
        print(text[0], file=sys.stderr)
        if FAULT == "raise":
            raise ValueError(text[0])
        if FAULT == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"input_ids": [list(t.encode()) for t in text]}
"""


class Bytes:
    """Stands for a tokenizer that is never asked."""

    eos_token_id = 256


class Place:
    """Data, a cache each for several engines, and a Ray whose files lie here."""

    def __init__(self, folder: Path, ray: Path) -> None:
        self.folder, self.ray = folder, ray
        draw = random.Random(2)
        posts = [{"user": f"u{draw.randrange(90)}", "text": f"{SECRET} {n} {'w ' * (n % 30)}"} for n in range(900)]
        posts[100]["text"] = ""
        (folder / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
        (folder / "slow_bytes.py").write_text(TOKENIZER)
        self.data = DataBlock.model_validate({
            "name": "made", "source": {"type": "jsonl", "path": str(folder / "posts.jsonl")}, "max_tokens": 64,
            "holdout": {"users": 0.2, "visibility": "public"},
        })  # fmt: skip

    def start(self, engine: str, cache: str, **environment: str) -> subprocess.Popen[str]:
        """Builds in a process of its own, as a driver of Ray is."""
        command = [sys.executable, "-c", BUILD, self.data.model_dump_json(), str(self.folder / cache), engine]
        path = os.pathsep.join((str(ROOT), str(self.folder)))
        given = {**os.environ, "PYTHONPATH": path, "RAY_TMPDIR": str(self.ray), **environment}
        return subprocess.Popen(
            command, cwd=self.folder, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def build(self, engine: str, cache: str, **environment: str) -> tuple[str, str]:
        """What it said on stdout and stderr."""
        process = self.start(engine, cache, **environment)
        said, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
        return said.strip(), errors

    def check_ray(self) -> None:
        """Nothing of a record is in Ray's files."""
        files = [path for path in self.ray.rglob("*") if path.is_file() and not path.is_symlink()]
        assert any(path.name.startswith("worker-") for path in files)
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.fixture
def place(tmp_path, short_folder):
    return Place(tmp_path, short_folder)


@pytest.fixture
def short_folder():
    """Ray's sockets need a short path."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
def test_ray_makes_the_same_corpus_and_sees_no_record(place):
    """Break: leave out the `Quiet` of `do` and the `guarded` of `_tokenize`: workers' logs have what it prints."""
    from harness.data.store import Corpus

    said, errors = place.build("ray", "many")
    one, many = Corpus.load(Path(place.build("single", "one")[0])), Corpus.load(Path(said))
    assert SECRET not in errors
    assert len(json.loads((many.folder / "corpus.json").read_bytes())["shards"]) > 1
    for corpus in (one, many):
        assert (corpus.n_users, corpus.bad_records) == (90, 1)
    assert [many.own_records(i) for i in range(90)] == [one.own_records(i) for i in range(90)]
    assert [many.tokens(e).tolist() for e in range(len(many.example_lengths))] == [
        one.tokens(e).tolist() for e in range(len(one.example_lengths))
    ]
    assert (many.folder / "problems.json").read_bytes() == (one.folder / "problems.json").read_bytes()
    place.check_ray()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"), [("raise", "2 the plugin slow_bytes"), ("die", "4 a process that prepared")]
)
def test_a_worker_that_fails_or_dies_is_one_line_without_a_record(fault, says, place):
    said, errors = place.build("ray", "many", SLOW_FAULT=fault)
    assert said.startswith(says)
    assert SECRET not in said + errors
    assert "Traceback" not in errors
    place.check_ray()


@pytest.mark.ray
@pytest.mark.slow
def test_a_preparation_that_was_killed_goes_on(place):
    """Break: a workplace of another name at each start."""
    first = place.start("ray", "many", SLOW_SECONDS="3")
    parts = place.folder / "many" / "corpora"
    try:
        for _ in range(600):
            finished = list(parts.glob(".preparing-*/parts/part-*"))
            if finished:
                break
            time.sleep(0.2)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
    assert 0 < len(finished) < 6
    before = {path.name: path.stat().st_mtime_ns for path in finished}
    (workplace,) = parts.glob(".preparing-*")
    second = place.start("ray", "many", SLOW_SECONDS="1")
    kept = {}
    while second.poll() is None:  # the parts are gone at the end
        with contextlib.suppress(OSError):
            kept.update({p.name: p.stat().st_mtime_ns for p in workplace.glob("parts/part-*")})
        time.sleep(0.1)
    said, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert len(kept) == 6
    assert before.items() <= kept.items()
    assert Path(said.strip()).is_dir()
    assert not workplace.exists()


# --- without Ray --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "large", "engine"),
    [
        ({}, False, None),
        ({}, True, "ray"),
        ({"engine": "single"}, True, None),
        ({"engine": "ray", "blocks": 3}, False, "ray"),
    ],
)
def test_who_prepares(block, large, engine, place, monkeypatch):
    monkeypatch.setattr(preparing, "LARGE_BYTES", 1 if large else 1 << 30)
    found = preparing.sharding_of(PrepareBlock(**block), open_source(place.data, place.folder))
    expected = engine and Sharding(block.get("blocks"), preparing.ray_workers)
    assert found == expected


def test_what_a_worker_raises_is_said_without_its_text(place, monkeypatch):
    """Break: `str(error)` in the message."""
    told = []

    def run(folder, stage, numbers):
        def fail(*_):
            raise ZeroDivisionError(SECRET)

        monkeypatch.setattr("harness.data.preparing.Work.do_part", fail)
        told.append(task({"number": numbers[0]}, str(folder), stage))
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def workers():
        yield run

    with pytest.raises(KeyboardInterrupt):
        build_corpus(
            open_source(place.data, place.folder), Columns.of(place.data), tokenizer=Bytes(), tokenizer_digest="b",
            data=place.data, cache_dir=place.folder / "cache", private_dir=place.folder / "private",
            sharding=Sharding(2, workers),
        )  # fmt: skip
    (row,) = told
    assert row["exit_code"] == 1
    assert "ZeroDivisionError" in row["failure"]
    assert SECRET not in row["failure"]
    assert SECRET in (place.folder / "private" / "preparation-error.log").read_text()


def test_a_folder_that_a_worker_does_not_see_is_named(tmp_path):
    row = task({"number": 0}, str(tmp_path / "cache" / "corpora" / ".preparing-x"), "part")
    assert row["exit_code"] == 4
    assert "is not on storage that all machines of the cluster see" in row["failure"]


def test_training_and_what_reads_a_corpus_do_without_ray():
    """Break: import `preparing_ray` at the top of `harness.running.preparing`."""
    modules = "harness.training.inputs, harness.data.corpus, harness.running.preparing"
    code = f"import sys, {modules}; print('ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
