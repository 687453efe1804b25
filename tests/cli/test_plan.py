"""``uudp plan``: what it shows, and that it looks at no record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main
from tests.tiny import made_posts, make_spec, write_posts

SPY = '''\
from harness.data.sources.base import RecordSource
from harness.plugins import OwnRecordsSegmenter


class Spy(RecordSource):
    """Tells of users, and fails when a text or the content is asked for."""

    def records(self, columns):
        raise AssertionError("plan read the records")

    def public(self, columns):
        for u in range(50):
            yield f"user-{u}", {a: "free" if u % 2 else "paid" for a in columns.attributes}

    def fingerprint(self, update):
        raise AssertionError("plan read the content")


class Silent(Spy):
    """Fails even when users are asked for."""

    def public(self, columns):
        raise AssertionError("plan counted users")


class Rule(OwnRecordsSegmenter):
    """Fails when a user is shown to it."""

    segments = ("few", "many")

    def assign(self, user):
        raise AssertionError("plan ran the rule")
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spying_plugins.py").write_text(SPY)
    return tmp_path


def write(folder: Path, blocks: dict[str, Any] | None = None, **changes: Any) -> str:
    posts = write_posts(folder / "posts.jsonl", made_posts())
    document = make_spec(Path("no-model"), posts, **changes).model_dump(mode="json", exclude_unset=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump({**document, **(blocks or {})}, sort_keys=False))
    return "spec.yaml"


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = main.run_app(["plan", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


def test_the_json_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = planned(capsys, write(folder, noise={"type": "scale", "epsilon": {"free": 8, "paid": 4}}))
    assert document["name"] == "tiny"
    assert document["private"] is True
    assert document["sampling"]["unit"] == "user"
    assert document["ledger"]["budget"] is None
    assert document["ledger"]["remaining_epsilon"] is None
    assert document["ledger"]["fits"] is True
    assert planned(capsys, "spec.yaml", "privacy.ledger=null")["ledger"] is None
    assert document["charges"] == []
    assert document["denominator"] == pytest.approx(8)
    by_name = {g["name"]: g for g in document["groups"]}
    assert set(by_name) == {"free", "paid"}
    assert sum(g["weight"] for g in document["groups"]) == pytest.approx(1)
    for name, target in (("free", 8), ("paid", 4)):
        group = by_name[name]
        assert group["target_epsilon"] == target
        assert target - 1e-3 < group["epsilon"] <= target
        assert group["noise_multiplier"] == pytest.approx(document["noise_std"] / group["clip_norm"])
    assert document["epsilon"] == max(g["epsilon"] for g in document["groups"])
    assert by_name["paid"]["clip_norm"] < by_name["free"]["clip_norm"]
    # Every value of the spec is there, with where it came from.
    assert document["spec"]["train"]["steps"] == 3
    assert set(document["versions"]) >= {"uudp", "dp-accounting"}
    assert len(document["mechanism_digest"]) == 64


def test_the_same_spec_gives_the_same_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(folder)
    first, second = planned(capsys, spec), planned(capsys, spec)
    for document in (first, second):
        # Other processes decide how much memory is free.
        assert document["memory"].pop("available") > 0
        assert "free" in document["memory"].pop("words") or document["memory"]["predicted"] is None
    assert first == second


def test_what_only_changes_speed_leaves_the_mechanism_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(folder)
    digest = planned(capsys, spec)["mechanism_digest"]
    same = ["compute.workers=4", "compute.deepspeed.stage=3", "compute.microbatch_tokens=64", "name=other", "seed=9"]
    assert planned(capsys, spec, *same)["mechanism_digest"] == digest
    for change in ("train.steps=4", "clipping.norm=0.6", "sampling.expected=9", "privacy.epsilon=7"):
        assert planned(capsys, spec, change)["mechanism_digest"] != digest, change


def test_lines_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["plan", write(folder), "train.steps=5"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, _, origins = out.partition("\nresolved spec, and where each value comes from:\n")
    assert "plan of tiny" in head
    assert "  guarantee   user-level ε = 8.00, δ = 10⁻⁵\n" in head
    assert "5 steps of 8 expected users" in head
    assert max(map(len, head.splitlines())) <= 80
    assert "NOT PRIVATE" not in out
    assert "  train.steps = 5  (<command line>)\n" in origins
    assert "  data.name = made  (spec.yaml:" in origins


def test_a_plan_without_noise_is_marked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: describe it by its ε alone."""
    spec = write(folder, noise={"type": "none"})
    assert main.run_app(["plan", spec]) == 0
    out = capsys.readouterr().out
    assert "  guarantee   NONE: trained without noise, NOT PRIVATE\n" in out
    assert "user-level ε" not in out
    document = planned(capsys, spec)
    assert (document["private"], document["epsilon"], document["delta"]) == (False, None, None)
    assert any(note.startswith("NOT PRIVATE") for note in document["notes"])
    assert all(g["epsilon"] is None for g in document["groups"])


def test_no_record_is_read_and_no_rule_is_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: let `make_plan` build the corpus, or assign the groups."""
    blocks = {"segmentation": {"type": "spying_plugins:Rule"}}
    data = {"source": {"type": "spying_plugins:Spy"}, "weights": {"few": 0.5, "many": 0.5}, "attributes": []}
    document = planned(capsys, _spied(folder, data, blocks))
    assert document["population"]["from"] == "public"
    assert 20 <= document["population"]["users"] < 50  # of 50, some of them held out
    rule = next(p for p in document["plugins"] if p["kind"] == "segmentation")
    assert rule["access"] == "one user's records at a time"


def test_what_is_declared_is_not_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: count the users although the spec gives their number."""
    blocks = {"segmentation": {"type": "spying_plugins:Rule"}}
    data = {
        "source": {"type": "spying_plugins:Silent"}, "weights": {"few": 0.5, "many": 0.5}, "attributes": [],
        "population": 1000, "holdout": {"users": 0.25, "visibility": "public"},
    }  # fmt: skip
    document = planned(capsys, _spied(folder, data, blocks))
    assert document["population"] == {"users": 750, "holdout_users": None, "from": "declared"}
    assert document["relation"] == "add_or_remove"


def test_group_sizes_by_own_records_must_be_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: count the groups, which are made from the users' own records, and call the counts public."""
    blocks = {"segmentation": {"type": "spying_plugins:Rule"}}
    assert main.run_app(["plan", _spied(folder, {"source": {"type": "spying_plugins:Spy"}}, blocks)]) == 2
    assert "data.weights" in capsys.readouterr().err


def _spied(folder: Path, data: dict[str, Any], blocks: dict[str, Any]) -> str:
    spec = write(folder, blocks)
    document = yaml.safe_load(Path(spec).read_text())
    document["data"].update(data)
    Path(spec).write_text(yaml.safe_dump(document, sort_keys=False))
    return spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampling.expected=500", "sampling.expected: 500 users per step, but there are "),
        ("data.source.path=nothing.jsonl", "data.source.path: there is no file nothing.jsonl"),
        ("data.population=1000", None),
        ("privacy.epsilon=-1", "privacy.epsilon"),
        ("train.stepz=4", 'did you mean "steps"?'),
    ],
)
def test_exit_codes(folder: Path, change: str, message: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run_app(["plan", write(folder), change])
    err = capsys.readouterr().err
    if message is None:
        assert (code, err) == (0, "")
    else:
        assert code == 2
        assert message in err


def test_delta_must_be_given_unless_users_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(folder)
    counted = planned(capsys, spec, "privacy.delta=null")
    assert counted["delta"] == pytest.approx(1 / (10 * counted["population"]["users"]))
    assert main.run_app(["plan", spec, "privacy.delta=null", "data.population=1000"]) == 2
    assert "privacy.delta: must be given" in capsys.readouterr().err
