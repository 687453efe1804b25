"""``uudp run`` as a whole: real Ray, real DeepSpeed, a tiny model; what it writes, prints and refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.cli import main
from harness.spec import load_spec
from tests.launching import ROOT, Run, Workplace, adapter, read_json, rows
from tests.tiny import made_posts, make_spec, write_posts

pytestmark = pytest.mark.ray

STEP = re.compile(r"(private|ordinary) step (\d+)(: ε spent [\d.]+)?(, hold-out loss [\d.]+|: hold-out loss [\d.]+)?")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec whose model does not exist: enough for what is refused before training."""
    monkeypatch.chdir(tmp_path)
    posts = write_posts(tmp_path / "posts.jsonl", made_posts())
    document = make_spec(tmp_path / "no-model", posts).model_dump(mode="json", exclude_unset=True)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- a finished run -----------------------------------------------------------------------------------------


def test_it_ends_well_and_stdout_is_one_json_document(whole_run: Run) -> None:
    assert whole_run.code == 0, whole_run.err
    document = json.loads(whole_run.out)  # anything before or after the document would be an error
    assert set(document) == {"run", "report", "summary"}
    assert document["run"] == str(whole_run.folder)
    assert document["report"] == str(whole_run.folder / "report.html")
    summary = document["summary"]
    assert summary["evaluated"]
    assert summary["private"] is True
    assert summary["step"] == 2
    assert summary["epsilon"] == read_json(whole_run.folder / "privacy.json")["epsilon"]
    assert set(summary["groups"]) == {"free", "paid"}


def test_the_folder_holds_exactly_what_is_specified(whole_run: Run) -> None:
    folder = whole_run.folder
    assert folder.parent == whole_run.place.out / "whole"
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", folder.name)
    assert {p.name for p in folder.iterdir()} == {
        "spec.yaml", "plan.json", "privacy.json", "metrics.jsonl", "adapter", "report.html", "private",
    }  # fmt: skip
    assert {p.name for p in (folder / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip


def test_the_private_folder_is_the_owners_alone(whole_run: Run) -> None:
    """Break: make the folder without a mode, or a file in it with 0644."""
    private = whole_run.folder / "private"
    assert mode(private) == 0o700
    for path in private.rglob("*"):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_key_and_checkpoints_are_gone(whole_run: Run, secret_run: Run) -> None:
    """Break: leave out `destroy_key`, or the removal of the checkpoints."""
    for run in (whole_run, secret_run):
        names = {p.name for p in (run.folder / "private").iterdir()}
        assert "diagnostics.jsonl" in names  # this is the right folder
        assert not names & {"key", "checkpoints", "ray", "stop"}
        assert not list((run.folder / "private").rglob("*.safetensors"))


def test_what_is_released_can_be_read_by_others(whole_run: Run) -> None:
    released = [p for p in whole_run.folder.rglob("*") if "private" not in p.relative_to(whole_run.folder).parts]
    assert {p: oct(mode(p)) for p in released if p.is_file() and mode(p) != 0o644} == {}


def test_the_written_spec_is_the_spec(whole_run: Run) -> None:
    written = load_spec(str(whole_run.folder / "spec.yaml"), [])
    assert written.spec == load_spec(str(whole_run.place.spec), []).spec


def test_plan_json_is_the_document_of_the_plan(whole_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["plan", str(whole_run.place.spec), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    written = read_json(whole_run.folder / "plan.json")
    assert written["model"].pop("origin") == "a local folder"
    assert written.pop("memory").keys() == planned.pop("memory").keys()  # what is free changes
    before, after = written.pop("ledger"), planned.pop("ledger")
    assert (before["runs"], after["runs"]) == (0, 1)  # by now the run itself is in it
    assert after["spent_epsilon"] == pytest.approx(written["epsilon"])
    assert written == planned


def test_the_guarantee(whole_run: Run) -> None:
    privacy, plan = read_json(whole_run.folder / "privacy.json"), read_json(whole_run.folder / "plan.json")
    assert privacy["private"] is True
    assert (privacy["status"], privacy["steps_completed"]) == ("finished", 2)
    assert privacy["epsilon"] == plan["epsilon"] == max(g["epsilon"] for g in privacy["groups"])
    assert privacy["epsilon"] == pytest.approx(8, abs=1e-3)
    assert privacy["mechanism_digest"] == plan["mechanism_digest"]
    assert "ε = 8.00 and δ = 1e-05" in privacy["statement"]


def test_the_released_metrics(whole_run: Run) -> None:
    found = rows(whole_run.folder)
    places = [(row["series"], row["step"]) for row in found]
    assert places == [("private", 0), ("private", 1), ("private", 2), ("ordinary", 1), ("ordinary", 2)]
    spent = [row["epsilon"] for row in found]
    assert spent[0] == 0
    assert 0 < spent[1] < spent[2]
    assert spent[2] == pytest.approx(read_json(whole_run.folder / "plan.json")["epsilon"], abs=1e-9)
    assert spent[3:] == [None, None]
    for row in found:
        allowed = {"series", "step", "epsilon", "eval/loss", "eval/tokens", "eval/loss/free", "eval/loss/paid"}
        assert set(row) <= allowed


def test_the_adapter_loads_with_plain_peft_and_generates(whole_run: Run) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(whole_run.place.base, dtype=torch.float32)
    prompt = AutoTokenizer.from_pretrained(whole_run.place.base)("tide lamp", return_tensors="pt")
    with torch.no_grad():
        before = base(**prompt).logits
        model = PeftModel.from_pretrained(base, whole_run.folder / "adapter")
        after = model(**prompt).logits
        generated = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert not torch.allclose(before, after, atol=1e-4)
    assert generated.shape[1] > prompt["input_ids"].shape[1]
    trained = adapter(whole_run.folder)
    assert all(value.any() for value in trained.values())
    assert len(trained) == 2 * 2 * 2  # two layers × two targets × two factors


def test_the_model_card_states_the_guarantee(whole_run: Run) -> None:
    """Break: leave the statement out of the card."""
    card = (whole_run.folder / "adapter" / "README.md").read_text()
    privacy = read_json(whole_run.folder / "privacy.json")
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["lora", "differential-privacy"]
    assert front["library_name"] == "peft"
    for text in (privacy["statement"], *privacy["assumptions"], *privacy["not_covered"], privacy["mechanism_digest"]):
        assert text in card


def test_the_console_of_public_data_counts_and_locates_bad_records(whole_run: Run) -> None:
    (line,) = [line for line in whole_run.err.splitlines() if "skipped" in line]
    assert "3 records were skipped" in line
    assert "see private/data.json" in line
    first = len(whole_run.place.posts.read_text().splitlines()) - 2
    assert f"line {first}" in line


def test_progress_is_plain_lines_without_times_where_there_is_no_terminal(whole_run: Run) -> None:
    lines = [line for line in whole_run.err.splitlines() if " step " in line]
    assert [STEP.fullmatch(line) is not None for line in lines] == [True] * 5, lines
    assert "\r" not in whole_run.err
    assert "\x1b" not in whole_run.err
    assert "min left" not in whole_run.err


def test_nothing_but_our_own_lines_reaches_the_console(whole_run: Run) -> None:
    """Libraries' warnings, Ray's worker output and DeepSpeed's throughput would be lines of another form."""
    text = whole_run.err
    for foreign in ("Warning", "WARNING", "[INFO]", "pid=", "deepspeed", "DeepSpeed", "Traceback", "it/s"):
        assert foreign not in text, text


def test_a_finished_run_is_not_resumed(
    whole_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UUDP_CACHE", whole_run.place.environment["UUDP_CACHE"])
    arguments = ["run", str(whole_run.place.spec), "--resume", "--yes", "--out", str(whole_run.place.out)]
    assert main.run_app(arguments) == 2
    assert "uudp: there is no unfinished run of whole in " in capsys.readouterr().err
    assert len(whole_run.place.runs()) == 1


# --- without privacy ----------------------------------------------------------------------------------------


def test_without_noise_everything_is_marked(unprotected_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: let `statement` or the card's tags say the same for a mechanism without noise."""
    run = unprotected_run
    assert run.code == 0, run.err
    privacy = read_json(run.folder / "privacy.json")
    assert privacy["private"] is False
    assert (privacy["epsilon"], privacy["delta"]) == (None, None)
    assert privacy["statement"].startswith("NOT PRIVATE")
    card = (run.folder / "adapter" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["lora", "not-private"]
    assert "NOT PRIVATE" in card
    assert "NOT PRIVATE" in (run.folder / "report.html").read_text()
    assert "NOT PRIVATE" in run.err  # the plan, before training
    written = read_json(run.folder / "plan.json")
    assert written["private"] is False
    assert written["epsilon"] is None
    assert any("NOT PRIVATE" in note for note in written["notes"])
    assert all(row["epsilon"] is None for row in rows(run.folder))
    assert "ε spent" not in run.err
    assert main.run_app(["plan", str(run.place.spec)]) == 0
    assert "NOT PRIVATE" in capsys.readouterr().out


def test_without_noise_consent_is_needed(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: drop the check of `--not-private` in `run`."""
    assert main.run_app(["run", str(spec), "noise.type=none", "--yes"]) == 2
    assert "noise.type: none trains without privacy; say --not-private" in capsys.readouterr().err
    assert not Path("runs").exists()


# --- refused before anything is spent -----------------------------------------------------------------------


def test_without_a_terminal_yes_is_required(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["run", str(spec)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "uudp: this would spend what the plan says; without a terminal, --yes is required" in err
    assert "guarantee   user-level ε = 8.00, δ = 10⁻⁵" in err  # what would be spent is shown first
    assert not Path("runs").exists()


def test_on_a_terminal_it_asks_and_no_is_no(spec: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "harness", "run", str(spec)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while b"Spend this and train?" not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, b"n\n")
        assert process.wait(60) == 2
        while b"nothing was spent" not in shown:
            shown += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert shown.index("guarantee   user-level ε = 8".encode()) < shown.index(b"Spend this and train?")
    assert not Path("runs").exists()


def test_a_wrong_spec_is_refused_before_the_question(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["run", str(spec), "train.steps=none"]) == 2
    assert "<command line>" in capsys.readouterr().err


def test_a_model_that_is_not_there(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["run", str(spec), "--yes", "model.base=./nothing"]) == 2
    assert 'model.base: "./nothing" is neither a folder with a config.json nor a hub id' in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main.run_app(["run", str(spec), "--yes", "--out", "file"]) == 4
    err = capsys.readouterr().err
    assert "can't make the run's folder" in err
    assert "Not a directory" in err


def test_nothing_to_resume(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["run", str(spec), "--yes", "--resume"]) == 2
    assert "there is no unfinished run of tiny in runs" in capsys.readouterr().err


def test_bad_records_stop_a_run_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workplace(tmp_path / "place", data={"on_bad_record": "stop"})
    place.clean()  # no process of its own is needed
    monkeypatch.setenv("UUDP_CACHE", place.environment["UUDP_CACHE"])
    with place.posts.open("a") as file:
        file.write("no JSON at all\n")
    assert main.run_app(["run", str(place.spec), "--yes", "--out", str(place.out)]) == 2
    err = capsys.readouterr().err
    assert "some records can't be used: see private/data.json (data.on_bad_record is stop)" in err
    assert "no JSON" not in err
    (problems,) = place.out.glob("*/*/private/data.json")
    assert read_json(problems)["bad_records"]["total"] == 1
