"""What a private run shows: everything outside its private folder, searched for what must not be there.

Seen by the adversary here: both streams, the run's folder but for `private/`, all of Ray's session folder (logs,
events), command lines and environments of all processes.
"""

from __future__ import annotations

import base64
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main
from harness.data.corpus import Corpus
from harness.privacy.ledger import Ledger
from harness.spec.compute_block import ComputeBlock
from tests import launching
from tests.launching import CANARY, KEY, PERSON, Run, Workplace, read_json, rows

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]

FAILING_WORKER = f"""\
import sys

if any("default_worker" in argument for argument in sys.orig_argv):
    import harness.data.store

    def failing(self, *arguments):
        text = "{CANARY} of {PERSON}"
        raise ValueError(f"can't make anything of {{text}}")

    harness.data.store.Corpus.tokens = failing
"""
"""In Ray's workers alone, reading a record fails, with an exception that quotes it."""

LEAKY_RULE = """\
import warnings

from harness.plugins import OwnRecordsSegmenter


class Rule(OwnRecordsSegmenter):
    segments = ("few", "many")

    def assign(self, user):
        print("printed", user.texts[0])
        warnings.warn("warned " + user.texts[0])
        raise ValueError(f"can't make anything of {user.texts[0]}")
"""


def spoken(run: Run) -> str:
    return run.out + run.err


def visible_files(place: Workplace) -> dict[Path, bytes]:
    """Everything in the run folders but `private/`, and all that Ray wrote."""
    files = [p for p in place.out.rglob("*") if "private" not in p.relative_to(place.out).parts]
    files += list(place.ray.rglob("*"))
    return {p: p.read_bytes() for p in files if stat.S_ISREG(p.lstat().st_mode)}


def ray_text(place: Workplace) -> str:
    found = [
        content.decode(errors="replace") for path, content in visible_files(place).items() if place.ray in path.parents
    ]
    assert len(found) > 20, "Ray's session folder is not where it was sought"
    return "\n".join(found)


def forms_of(key: bytes) -> list[bytes]:
    """How a key could be written down."""
    return [key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:-1], repr(key)[2:-1].encode()]


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def assert_no_secrets(place: Workplace, console: str) -> None:
    for secret in (CANARY, PERSON):
        assert secret not in console
        for path, content in visible_files(place).items():
            assert secret.encode() not in content, f"{secret} is in {path}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """Where a run on private text can be started."""
    workplace = launching.secret_run(tmp_path / "place")
    monkeypatch.setenv("UUDP_CACHE", workplace.environment["UUDP_CACHE"])  # for commands within this process
    yield workplace
    workplace.clean()


# --- a run that goes well -----------------------------------------------------------------------------------


def test_no_text_and_no_user_id(secret_run: Run) -> None:
    """Break: `print` a unit's text in the training loop; write the groups of users into plan.json."""
    assert secret_run.code == 0, secret_run.err
    assert CANARY in secret_run.place.posts.read_text()  # the secrets are in what was trained on
    job = read_json(secret_run.folder / "private" / "job.json")
    assert Corpus.load(Path(job["corpus"])).n_users == 67
    assert_no_secrets(secret_run.place, spoken(secret_run))


def test_no_key(secret_run: Run) -> None:
    """Break: put the key into the environment before Ray starts, or log it in a worker."""
    place = secret_run.place
    shown = [text.encode(errors="surrogateescape") for text in place.watched.values()]
    assert len(shown) > 5, "no process was watched"
    assert any(b"RayTrainWorker" in text for text in shown)
    for form in forms_of(KEY):
        assert form not in spoken(secret_run).encode()
        assert not any(form in text for text in shown)
        for path, content in visible_files(place).items():
            assert form not in content, path
        for path in (secret_run.folder / "private").rglob("*"):  # nor is a copy left where it was
            assert not path.is_file() or form not in path.read_bytes(), path


def test_ray_is_told_a_path_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: put the key, the spec or the corpus into `train_loop_config`."""
    import ray

    from harness.training import ray as ours

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_bytes(KEY)
    trainer = ours.trainer(tmp_path, ComputeBlock(workers=2), "cpu", restarts=3)
    assert trainer.train_loop_config == {"run_dir": str(tmp_path)}
    assert not trainer.datasets
    assert not trainer.run_config.worker_runtime_env
    assert Path(trainer.run_config.storage_path) == tmp_path / "private" / "ray"
    assert trainer.run_config.name == tmp_path.name


def test_no_training_statistics(secret_run: Run) -> None:
    """Losses of the cohorts are in the diagnostics, and nowhere else. Break: report them through Ray, or print them."""
    path = secret_run.folder / "private" / "diagnostics.jsonl"
    losses = [row["train/loss"] for row in map(json.loads, path.read_text().splitlines()) if row["train/loss"]]
    assert len(losses) >= 10
    text = spoken(secret_run) + "".join(
        content.decode(errors="replace") for content in visible_files(secret_run.place).values()
    )
    for loss in losses:
        assert f"{loss:.9f}"[:-1] not in text
        assert f"loss {loss:.4f}" not in text
    for word in (
        "train/loss",
        "cohort_size",
        "clipped_fraction",
        "grad_norm",
        "SamplesPerSec",
        "samples/sec",
        "tokens/s",
    ):
        assert word not in text


def test_no_times_and_no_counts_in_what_is_released(secret_run: Run) -> None:
    """Break: add the step's duration or the size of the cohort to a row of metrics."""
    allowed = {"series", "step", "epsilon", "eval/loss", "eval/tokens", "eval/loss/few", "eval/loss/many"}
    for row in rows(secret_run.folder):
        assert set(row) <= allowed
    job = read_json(secret_run.folder / "private" / "job.json")
    corpus = Corpus.load(Path(job["corpus"]))
    training = [u for u in range(corpus.n_users) if not corpus.holdout[u]]
    examples = corpus.example_lengths
    true = {
        "users": corpus.n_users,
        "training users": len(training),
        "examples": len(examples),
        "tokens": int(examples.sum()),
        "records": sum(1 for _ in secret_run.place.posts.open()) - 2,
    }
    assert 60 * 0.75 not in true.values()  # the declared number is not the true one
    released = [read_json(secret_run.folder / name) for name in ("plan.json", "privacy.json")] + rows(secret_run.folder)
    shown = {float(n) for n in numbers(released)} | {
        float(n) for n in re.findall(r"(?<![\w.-])\d+(?![\w.-])", secret_run.err)
    }
    assert 45.0 in shown  # declared, with the hold-out taken off
    assert {what: n for what, n in true.items() if float(n) in shown} == {}


def test_every_line_of_the_console_is_expected(secret_run: Run) -> None:
    """Times, counts and libraries' chatter would be lines that no pattern knows."""
    lines = secret_run.err.splitlines()
    after = lines[next(i for i, line in enumerate(lines) if line.startswith("model: ")) :]
    patterns = (
        r"model: .*", r"  from a local folder", r"data: made", r"  some records were skipped, see private/data\.json",
        r"training: 2 worker\(s\), ZeRO 2, cpu", r"private step \d+: ε spent \d+\.\d{3}, hold-out loss \d+\.\d{4}",
    )  # fmt: skip
    strange = [line for line in after if not any(re.fullmatch(p, line) for p in patterns)]
    assert strange == []
    assert sum("skipped" in line for line in after) == 1
    told = secret_run.out.splitlines()
    expected = (r"hold-out loss \(nats per token\): base [\d.]+, trained [\d.]+", r"adapter: .*", r"report: .*")
    assert len(told) == len(expected)
    assert all(re.fullmatch(p, line) for p, line in zip(expected, told, strict=True))


def test_bad_records_are_located_in_private_alone(secret_run: Run) -> None:
    """Break: describe them as those of public data."""
    problems = read_json(secret_run.folder / "private" / "data.json")["bad_records"]
    assert problems["total"] == 2
    assert {p["reason"] for p in problems["listed"]} == {"the text is empty", "not JSON (column 1)"}
    where = problems["listed"][0]["where"]
    assert where.startswith("line ")
    assert where not in spoken(secret_run)
    for path, content in visible_files(secret_run.place).items():
        if secret_run.place.out in path.parents:
            assert where.encode() not in content, path


# --- runs that fail -----------------------------------------------------------------------------------------


def test_a_workers_exception(place: Workplace) -> None:
    """What a worker raises names a record; the console and Ray's logs say its type alone.

    Break: let `worker` raise the exception as it is (`raise` in place of the bare name).
    """
    (place.folder / "sitecustomize.py").write_text(FAILING_WORKER)
    process = place.start_run("compute.retries=0")
    assert process.wait() == 1, process.err
    folder = place.run_folder()
    said, how = process.err.splitlines()[-2:]
    assert said == f"uudp: training failed; details are in {folder / 'private' / 'error.log'}"
    command = f"uudp run {place.spec} compute.retries=0 --resume --run {folder.name} --yes --out {place.out}"
    assert how == f"uudp: go on with: {command}"
    assert "Traceback" not in process.err
    logs = list((folder / "private").glob("worker-*-error.log"))
    assert logs, "no worker failed"
    assert any(CANARY in log.read_text() for log in logs), "the exception quoted no record: nothing was tested"
    assert all(stat.S_IMODE(log.stat().st_mode) == 0o600 for log in logs)
    assert_no_secrets(place, process.out + process.err)
    assert "details are in the run's private folder" in ray_text(place)  # it is the worker's log that was searched


def test_a_plugin_that_quotes_a_record(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Break: let a rule's own exception through to the command.

    That it failed says something of a record, so the run stays charged. Seen red: `touch` left out.
    """
    (tmp_path / "leaky_rule_plugin.py").write_text(LEAKY_RULE)
    monkeypatch.syspath_prepend(tmp_path)
    document = yaml.safe_load(place.spec.read_text())
    place.spec.write_text(yaml.safe_dump({**document, "segmentation": {"type": "leaky_rule_plugin:Rule"}}))
    assert main.run_app(["run", str(place.spec), "--yes", "--out", str(place.out)]) == 2
    out, err = capfd.readouterr()
    assert "the plugin leaky_rule_plugin.Rule raised an error; see private/plugin-errors.log" in err
    (log,) = place.out.glob("*/*/private/plugin-errors.log")
    assert CANARY in log.read_text()
    assert_no_secrets(place, out + err)
    assert Ledger(place.ledger).account(document["data"]["name"]).spent_epsilon > 0


def test_data_that_are_gone(place: Workplace) -> None:
    """A source that vanishes is named, and nothing of what was in it."""
    place.posts.unlink()
    process = place.start_run()
    assert process.wait() == 2
    assert "data.source.path: there is no file" in process.err
    assert_no_secrets(place, process.out + process.err)
