"""A run with an audit, and ``uudp audit`` on it: real Ray, a tiny model, text that must not come out."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.auditing import flow
from harness.benchmarking.results import why_failed
from harness.cli import main
from harness.errors import MachineError
from harness.training.job import Folder
from tests.launching import CANARY, PERSON, Run, Workplace, ended, read_json, secret_posts

pytestmark = pytest.mark.ray

AUDIT = {
    "one_run": {"canaries": 80},
    "extraction": {"secrets": 4, "digits": 3, "candidates": 20, "samples": 1},
    "user_inference": {"users": 20},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished run on private text with every attack, and two prompts."""
    place = Workplace(
        tmp_path_factory.mktemp("audited"),
        secret_posts(),
        name="audited",
        data={"attributes": [], "max_tokens": 64},
        blocks={"segmentation": {"type": "none"}, "audit": AUDIT},
        report={"html": True, "prompts": ["tide", "lamp"], "tokens": 4},
    )
    try:
        yield ended(place, place.start_run("--json"))
    finally:
        place.clean()


def run_verb(audited: Run, *arguments: str) -> int:
    return main.run_app(["audit", str(audited.folder), *arguments])


def test_a_run_is_audited_when_it_ends(audited: Run) -> None:
    """Break: `examine` left out of `finish`."""
    assert audited.code == 0, audited.err
    document = read_json(audited.folder / "audit.json")
    assert {t["kind"] for t in document["one_run"]} == {"gradient", "text"}
    assert document["verdict"] in ("consistent", "inconclusive")
    assert document["claimed"]["epsilon"] == read_json(audited.folder / "privacy.json")["epsilon"]
    assert sum(p["count"] for p in document["planted"]) == 84
    assert "audit: guessing which canaries were in the training" in audited.err
    assert [s["prompt"] for s in read_json(audited.folder / "samples.json")["samples"]] == ["tide", "lamp"]
    assumptions = " ".join(read_json(audited.folder / "privacy.json")["assumptions"])
    assert "84 made users (canaries)" in assumptions


def test_nothing_of_users_or_of_who_is_in_comes_out(audited: Run) -> None:
    """Break: the document of user inference released; the canaries' file beside the report."""
    private = json.loads((Folder(audited.folder).private / "audit.json").read_text())
    assert private["user_inference"]["overall"]["members"] > 0
    assert read_json(audited.folder / "audit.json")["user_inference"] == {"private": True}
    codes = [c["code"] for c in read_json(Folder(audited.folder).canaries)["canaries"] if c["code"]]
    assert len(codes) == 4
    for path in audited.folder.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            content = path.read_bytes()
            assert CANARY.encode() not in content, path
            assert PERSON.encode() not in content, path
            assert b'"included"' not in content, path
    for text in (audited.out, audited.err):
        assert CANARY not in text
        assert PERSON not in text
    assert oct(Folder(audited.folder).canaries.stat().st_mode & 0o777) == "0o600"
    assert not Folder(audited.folder).key.exists()


def test_again_it_finds_the_same(audited: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_json(audited.folder / "audit.json")
    assert run_verb(audited, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["one_run"] == before["one_run"]
    assert found["extraction"] == before["extraction"]
    assert run_verb(audited) == 0
    assert "one run, gradient canaries, likelihood ratio, all groups:" in capsys.readouterr().out


def test_more_attacks_that_need_nothing_planted(audited: Run, capsys: pytest.CaptureFixture[str]) -> None:
    more = "audit.reconstruction={texts: 2, tokens: 6, cohorts: [1]}"
    assert run_verb(audited, more, "audit.user_inference.fresh=false", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reconstruction"]["shares"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("audit.one_run.guesses=20", "were fixed before the training"),
        ("audit.extraction.samples=3", "were fixed before the training"),
        ("audit.confidence=0.9", "were fixed before the training"),
        ("audit.user_inference.examples=2", "left out no such examples"),
        ("train.steps=9", "a run is audited as it was trained"),
        ("audit.one_rum={}", "unknown key"),
    ],
)
def test_what_can_not_be_asked_afterwards(
    audited: Run, override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests chosen after a look at answers would be found too often. Break: `_block` without its checks."""
    assert run_verb(audited, override) == 2
    assert says in capsys.readouterr().err


def test_a_bound_above_the_claim_fails_loudly(audited: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run claiming next to nothing, with canaries seen plainly; the model card says so from now on.

    Break: `violated` not raised; the card not written again.
    """
    copy = tmp_path / "copy"
    shutil.copytree(audited.folder, copy)
    privacy = read_json(copy / "privacy.json")
    privacy["epsilon"] = 0.01
    privacy["groups"] = [{**group, "epsilon": 0.01} for group in privacy["groups"]]
    (copy / "privacy.json").write_text(json.dumps(privacy))
    drawn = [c for c in read_json(Folder(copy).canaries)["canaries"] if c["kind"] == "gradient"]
    rows = [json.loads(line) for line in Folder(copy).observed.read_text().splitlines() if line]
    seen = [9.0 if canary["included"] else -9.0 for canary in drawn]
    Folder(copy).observed.write_text("".join(json.dumps({**row, "seen": seen}) + "\n" for row in rows))
    assert main.run_app(["audit", str(copy)]) == 1
    assert "AUDIT FAILED" in why_failed(copy)  # as a suite that is gone on with says
    captured = capsys.readouterr()
    assert "AUDIT FAILED: ε of any user is at least" in captured.err
    assert read_json(copy / "audit.json")["verdict"] == "violated"
    assert "AUDIT FAILED" not in (audited.folder / "adapter" / "README.md").read_text()
    card = (copy / "adapter" / "README.md").read_text()
    assert "> **AUDIT FAILED: NOT PRIVATE.**" in card
    assert "audit-failed" in card


def test_a_full_disk_is_one_line(
    audited: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: `audit` without its look at the error."""
    before = (audited.folder / "audit.json").read_bytes()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(flow, "write_released", full)
    assert run_verb(audited) == MachineError.exit_code
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("uudp:")]
    assert line == f"uudp: {audited.folder / 'audit.json'} could not be written: No space left on device"
    assert (audited.folder / "audit.json").read_bytes() == before


def test_a_submission_without_its_private_folder(
    audited: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(audited.folder, copy, ignore=shutil.ignore_patterns("private"))
    assert main.run_app(["audit", str(copy)]) == 2
    assert "its private folder is not here" in capsys.readouterr().err
    shutil.rmtree(copy / "adapter")
    assert main.run_app(["audit", str(copy)]) == 2
    assert "holds no trained model" in capsys.readouterr().err
