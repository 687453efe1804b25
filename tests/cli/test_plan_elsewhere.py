"""``uudp plan --on``: what it shows, what it refuses, and that it looks at no record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main
from tests.tiny import made_posts, make_spec, write_posts

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip
LARGE = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
SPY = """\
from harness.data.sources.base import RecordSource


class Spy(RecordSource):
    def records(self, columns):
        raise AssertionError("plan read the records")

    def public(self, columns):
        for u in range(50):
            yield f"user-{u}", {a: "free" if u % 2 else "paid" for a in columns.attributes}

    def fingerprint(self, update):
        raise AssertionError("plan read the content")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spying_on.py").write_text(SPY)
    for name, config in (("small", SMALL), ("large", LARGE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    posts = write_posts(tmp_path / "posts.jsonl", made_posts())
    document = make_spec(tmp_path / "small", posts, compute={"accelerator": "auto"})
    plain = document.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return tmp_path


def elsewhere(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main.run_app(["plan", "spec.yaml", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["memory"] is None
    found: dict[str, Any] = document["elsewhere"]
    return found


def test_the_json_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = elsewhere(capsys, "--on", "16xH100", "--price", "2.5")
    assert (found["on"], found["devices"], found["device"]) == ("16xH100", 16, "H100")
    for kind in ("low", "likely", "high"):
        assert found["cost"][kind] == pytest.approx(2.5 * found["device_hours"][kind])
        assert found["device_hours"][kind] == pytest.approx(16 * found["seconds"][kind] / 3600)
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"]["likely"])
    assert [row["devices"] for row in found["by_devices"]] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert found["memory"]["fits"] is True
    assert found["useful_devices"] <= 8
    assert found["error"]["step"] is None
    assert found["assumed"]["utilisation_from"] == "assumed"
    assert any(note.startswith("No GPU was at hand") for note in found["notes"])
    assert any("A cohort of 8 users can't feed 16 devices" in note for note in found["notes"])


def test_of_cpus_the_error_is_stated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = elsewhere(capsys, "--on", "3xcpu")
    assert found["error"]["step"] == 0.2
    assert found["memory"]["fits"] is None
    assert found["cost"] is None
    assert 3 in [row["devices"] for row in found["by_devices"]]
    assert any("within 20%" in note for note in found["notes"])


def test_a_given_utilisation_is_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = elsewhere(capsys, "--on", "1xH100", "--utilisation", "0.3")
    assert found["assumed"]["utilisation"] == [0.3, 0.3, 0.3]
    assert found["assumed"]["utilisation_from"] == "given"


def test_a_billion_users(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Time to draw follows the cohort; preparation follows the users."""
    more = (
        "--on",
        "64xH100",
        "data.weights={free: 0.5, paid: 0.4, other: 0.1}",
        "sampling.expected=10000",
        "privacy.delta=1e-10",
    )
    small = elsewhere(capsys, *more, "data.population=1000000")
    large = elsewhere(capsys, *more, "data.population=1000000000")
    assert large["data"]["prepare_core_seconds"] == pytest.approx(1000 * small["data"]["prepare_core_seconds"])
    assert large["step_seconds"]["likely"] < 10 * small["step_seconds"]["likely"]
    assert any("beyond what was measured" in note for note in large["notes"])


def test_lines_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["plan", "spec.yaml", "--on", "512xA100-40GB", "--price", "1.75"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head = out.partition("\nresolved spec")[0]
    assert max(map(len, head.splitlines())) <= 80
    assert "\non 512xA100-40GB, predicted:\n" in head
    for word in ("time", "step", "memory", "cost", "data", "useful"):
        assert f"\n  {word:<12}" in head
    assert "speed-up" in head
    assert " at 1.75 per device-hour" in head
    assert "needs about" not in head  # of this machine


def test_no_record_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The source raises when it is read, and the prediction is there all the same.

    Break: measure the examples' lengths in the data.
    """
    found = elsewhere(capsys, "--on", "2xL4", 'data.source={type: "spying_on:Spy"}', "data.population=50")
    assert found["data"]["prepare_core_seconds"] > 0


def test_what_does_not_fit_is_refused_with_what_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: compare with what is free on this machine."""
    arguments = ["plan", "spec.yaml", "--on", "8xH100", "model.base=large", "model.dtype=bfloat16"]
    assert main.run_app(arguments) == 4
    out, err = capsys.readouterr()
    assert "no room" in out
    (line,) = err.splitlines()
    assert line.startswith("uudp: memory: needs about 13")
    assert "H100 has 75 GiB. What would fit: compute.deepspeed.stage: 3" in line
    assert line.endswith("as it is")
    assert main.run_app([*arguments, "compute.deepspeed.stage=3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--on", "64xH1000"], 2, '--on 64xH1000: no such device; did you mean "64xH100"?'),
        (["--price", "3"], 2, "--price goes with --on, as in --on 64xH100"),
        (["--on", "2xL4", "--price", "-1"], 2, "--price -1: must be above 0"),
        (["--on", "2xL4", "--price", "inf"], 2, "--price inf: must be above 0"),
        (["--on", "2xL4", "--utilisation", "30"], 2, "--utilisation 30: must be above 0 and at most 1"),
        (["--on", "2xcpu", "--utilisation", "0.3"], 2,
         "--on 2xcpu: --utilisation is for GPUs; a core's speed is measured"),
        (["--on", "2xcpu", "compute.accelerator=cuda"], 2, "--on 2xcpu: the spec says compute.accelerator: cuda"),
        (["--on", "2xL4", "compute.accelerator=cpu"], 2, "--on 2xL4: the spec says compute.accelerator: cpu"),
        (["--on", "2xL4", "model.base=nobody/knows"], 4,
         "--on: the shape of the base nobody/knows is not known here, so that nothing can be predicted; model.base may "
         "be a folder that holds its config.json alone"),
    ],
)  # fmt: skip
def test_errors(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str) -> None:
    assert main.run_app(["plan", "spec.yaml", *arguments]) == code
    assert capsys.readouterr().err == f"uudp: {says}\n"


def test_all_weights_at_stage_0_go_with_one_gpu_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((folder / "spec.yaml").read_text())
    document["model"]["adapter"] = {"type": "full"}
    (folder / "spec.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    assert main.run_app(["plan", "spec.yaml", "--on", "2xL4"]) == 2
    says = "compute.deepspeed.stage: 0 does not go with adapter type: full on several GPUs; take 1, 2 or 3"
    assert capsys.readouterr().err == f"uudp: --on 2xL4: {says}\n"
    elsewhere(capsys, "--on", "1xL4")


def test_a_population_that_waits_for_an_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = ["data.weights={free: 0.5, paid: 0.4, other: 0.1}", "sampling.expected=null", "sampling.rate=0.1"]
    assert main.run_app(["plan", "spec.yaml", *waiting, "--on", "2xL4", "data.population=noisy"]) == 2
    says = "--on: the number of users waits for a noisy answer; guess it: data.population=10000"
    assert capsys.readouterr().err == f"uudp: {says}\n"
    assert elsewhere(capsys, *waiting, "--on", "2xL4", "data.population=10000")["data"]["users"] > 0
