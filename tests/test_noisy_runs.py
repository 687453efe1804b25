"""Whole runs that ask for noisy answers: what they release, and that a crash changes neither answers nor charge."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.corpus import Corpus
from tests import launching
from tests.launching import KEY, Run, Workplace, adapter, read_json, rows
from tests.test_leaks import assert_no_secrets, numbers, visible_files

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]

FEW, MANY = 41, 26
"""Users of the text with few and with many posts: the counts that must stay secret."""


def noisy_place(folder: Path) -> Workplace:
    """Private text of which only rates are declared: counts and evaluation are noisy, a median chooses levers."""
    posts = [
        {"user": f"{launching.PERSON}-{u:03d}", "text": f"{launching.CANARY}-{u:03d}-{p} tide lamp north"}
        for u in range(FEW + MANY)
        for p in range(2 if u < FEW else 5)
    ]
    return Workplace(
        folder,
        posts,
        name="noisy",
        data={
            "population": "noisy",
            "weights": "noisy",
            "attributes": [],
            "max_tokens": 64,
            "holdout": {"users": 0.25, "visibility": "private"},
        },
        blocks={
            "segmentation": {"type": "usage", "measure": "records", "edges": [3], "names": ["few", "many"]},
            "sampling": {"unit": "user", "rate": 0.3, "examples_per_user": "auto"},
            "clipping": {"type": "adaptive", "initial": 0.4},
        },
        noise={"type": "scale", "epsilon": {"few": 8, "many": 6}},
        privacy={"session": {"noise_multiplier": 9.0}},
        train={"steps": 6, "checkpoint_every": 2},
        compute={"workers": 2, "deepspeed": {"stage": 1}, "microbatch_tokens": 128, "retries": 0},
        report={"html": True},
    )


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished, undisturbed run of it with a known key; tests only look at it."""
    place = noisy_place(tmp_path_factory.mktemp("noisy"))
    try:
        yield launching.ended(place, place.start_with_key(KEY))
    finally:
        place.clean()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    """Where the same run can be disturbed."""
    workplace = noisy_place(tmp_path / "place")
    yield workplace
    workplace.clean()


def test_it_ends_within_its_budget(noisy_run: Run) -> None:
    """Charges, training and evaluation together. Break: charges left out of `Mechanism.event`."""
    assert noisy_run.code == 0, noisy_run.err
    plan, privacy = read_json(noisy_run.folder / "plan.json"), read_json(noisy_run.folder / "privacy.json")
    assert plan["pending"] == []
    assert plan["ledger"]["url"] == noisy_run.place.ledger
    assert {c["what"] for c in plan["charges"]} == {"users per group", "examples per user (median)"}
    assert privacy["epsilon"] <= 8
    assert [g["epsilon"] <= target for g, target in zip(privacy["groups"], (8, 6), strict=True)] == [True, True]
    assert privacy["holdout"]["visibility"] == "private"
    assert privacy["holdout"]["epsilon"] <= 8
    assert privacy["adjacency"] == "add or remove one user"
    assert "Hold-out users" not in " ".join(privacy["not_covered"])


def test_nothing_private_is_seen(noisy_run: Run) -> None:
    """Texts, names and true counts. Break: `Answer.value` replaced by the exact count; the exact loss released."""
    assert_no_secrets(noisy_run.place, noisy_run.out + noisy_run.err)
    corpus = Corpus.load(Path(read_json(noisy_run.folder / "private" / "job.json")["corpus"]))
    groups = np.load(noisy_run.folder / "private" / "groups.npy")
    training = ~np.asarray(corpus.holdout)
    true = {
        "users": corpus.n_users,
        "training users": int(training.sum()),
        "few": int(((groups == 0) & training).sum()),
        "many": int(((groups == 1) & training).sum()),
        "examples": len(corpus.example_lengths),
        "tokens": int(corpus.example_lengths.sum()),
    }
    documents = [read_json(noisy_run.folder / name) for name in ("plan.json", "privacy.json")] + rows(noisy_run.folder)
    shown = {float(n) for n in numbers(documents)} | {
        float(n) for n in re.findall(r"(?<![\w.-])\d+(?![\w.-])", noisy_run.err + noisy_run.out)
    }
    assert {what: n for what, n in true.items() if float(n) in shown} == {}
    text = "".join(content.decode(errors="replace") for content in visible_files(noisy_run.place).values())
    for word in ("eval/tokens", "train/loss", "clipped_fraction"):
        assert word not in text


def test_what_is_released_is_noisy_and_no_more_than_accounted(noisy_run: Run) -> None:
    """Break: a fifth evaluation, or tokens counted beside the loss."""
    released = rows(noisy_run.folder)
    names = {"series", "step", "epsilon", "eval/loss", "eval/loss/few", "eval/loss/many", "clip/factor"}
    assert [row["step"] for row in released] == [0, 2, 4, 6]
    assert all(set(row) == names for row in released)
    assert read_json(noisy_run.folder / "plan.json")["holdout"]["evaluations"] == 4
    assert released[0]["epsilon"] > 0  # the answers before training are paid for by then
    assert len({row["clip/factor"] for row in released}) == 4


def test_denominators_follow_from_the_noisy_answers(noisy_run: Run) -> None:
    """Break: the plan before the answers trained with (a denominator of 0.3), or the true counts divided by."""
    mechanism = read_json(noisy_run.folder / "private" / "job.json")["mechanism"]
    answers = read_json(noisy_run.folder / "private" / "settled.json")["counts"]
    users = {g["name"]: g["users"] for g in mechanism["groups"]}
    assert users == pytest.approx({name: max(1.0, value) for name, value in answers.items()}, rel=1e-9)
    assert {g["sampling_rate"] for g in mechanism["groups"]} == {0.3}


def test_a_driver_killed_after_the_answers(place: Workplace, noisy_run: Run) -> None:
    """The same answers, the same adapter bit by bit, and one charge.

    Break: the session asked with a fresh key on resume; the clip factor left out of the checkpoint.
    """
    # With the other cache's key, the answers have the same address: the same noise for the same run's key.
    secret = Path("cache") / "fingerprint.key"
    (place.folder / "cache").mkdir(mode=0o700)
    shutil.copy(noisy_run.place.folder / secret, place.folder / secret)
    process = place.start_with_key(KEY)
    process.until(lambda: "training: 2 worker(s)" in process.err, "training began")
    process.kill()
    process.clean()
    folder = place.run_folder()
    resumed = place.start_run("--resume")
    assert resumed.wait() == 0, resumed.err
    assert place.runs() == [folder]
    for name in ("settled.json", "counts.json"):
        assert (folder / "private" / name).read_bytes() == (noisy_run.folder / "private" / name).read_bytes()
    assert rows(folder) == rows(noisy_run.folder)
    ours, theirs = adapter(folder), adapter(noisy_run.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with sqlite3.connect(place.ledger.removeprefix("sqlite:///")) as database:
        kinds = [kind for (kind,) in database.execute("select kind from ledger_entries order by sequence")]
    assert kinds == ["reserve", "touch", "finish"]


def test_a_begun_run_trains_no_other_mechanism(place: Workplace) -> None:
    """Refused in one line: the draws were for what the first answers led to.

    Break: the mechanism compared as it was before the answers, so that other answers train on with the same draws;
    the size that a micro-batch came down to written into the plan, which is written again after the answers.
    """
    process = place.start_with_key(KEY)
    process.until(lambda: "training: 2 worker(s)" in process.err, "training began")
    process.kill()
    process.clean()
    path = place.run_folder() / "private" / "counts.json"
    answers = read_json(path)
    (counted,) = (record["answer"] for record in answers.values() if "group" in record["answer"]["query"])
    counted["noisy"] = [2 * number for number in counted["noisy"]]
    path.write_text(json.dumps(answers))
    # As if memory had run out: how small a micro-batch became follows from who was drawn.
    (place.run_folder() / "private" / "microbatch.json").write_text(json.dumps({"tokens": 64}))
    resumed = place.start_run("--resume")
    assert resumed.wait() == 2, resumed.err
    assert read_json(place.run_folder() / "plan.json")["memory"]["microbatch_tokens"] == 128
    assert "another mechanism than its noisy answers lead to now" in resumed.err
    assert "Traceback" not in resumed.err
