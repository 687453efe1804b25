"""``uudp submit`` and its sisters, as far as they go without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.benchmarking.reading import load_suite
from harness.cli import main
from harness.cli.submit import Verb, _submission, _verb_of
from harness.cluster.bundle import Bundle
from harness.cluster.submitting import check
from harness.errors import UserError
from harness.spec import load_spec
from tests.cluster.conftest import STORAGE, document
from tests.tiny import made_posts, write_posts


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    write_posts(tmp_path / "posts.jsonl", made_posts())
    path = tmp_path / "mails.yaml"
    path.write_text(yaml.safe_dump(document()))
    return path


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["submit", "mails.yaml"], 2, "uudp: --address: must be given: the cluster's job server, as http://HOST:8265"),
        (["jobs", "--address", "http://127.0.0.1:9"], 4, "uudp: the job server at http://127.0.0.1:9 does not answer"),
        (["logs", "x", "--address", "nowhere"], 2, "uudp: --address: must be the address of the cluster's job server"),
        (
            ["submit", "mails.yaml", "noise.type=none", "--address", "http://127.0.0.1:9"],
            2,
            "uudp: noise.type: none trains without privacy; say --not-private",
        ),
        (
            ["submit", "mails.yaml", "compute.storage=shared", "--address", "http://127.0.0.1:9"],
            2,
            "<command line> compute.storage: must be an absolute path on the cluster",
        ),
        (["submit", "mails.yaml", "--verb", "train"], 2, "uudp: Invalid value for '--verb'"),
    ],
)
def test_what_is_refused(
    spec: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, line: str
) -> None:
    assert main.run_app(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line), err
    assert len(err.splitlines()) == 1


def test_all_mistakes_of_a_spec_come_first(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `validate` says them. Break: ask the cluster first."""
    spec.write_text(yaml.safe_dump(document(train={"stepps": 3}, sampling={"expected": -1})))
    assert main.run_app(["submit", "mails.yaml", "--address", "http://127.0.0.1:9"]) == 2
    err = capsys.readouterr().err
    assert "train.stepps" in err
    assert "sampling.expected" in err


def test_a_suite_goes_with_its_specs(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What it sets and its policies stay its own. Break: send the suite with the paths that it has here."""
    suite = spec.parent / "suite.yaml"
    suite.write_text(
        yaml.safe_dump(
            {
                "version": 1, "suite": "two", "specs": {"a": "mails.yaml", "b": "mails.yaml"}, "budgets": [4, 8],
                "set": {"train.steps": 5}, "policies": {"uniform": {"noise": {"type": "uniform"}}}, "seeds": [1, 2],
            }
        )
    )  # fmt: skip
    submission = _submission("suite.yaml", [f"compute.storage={STORAGE}/x"], Verb.bench, None, False, "python")
    assert (submission.name, submission.main) == ("two", "suite.yaml")
    folder = tmp_path_factory.mktemp("bundle")
    bundle = Bundle(folder, Path(f"{STORAGE}/x"))
    for name, loaded in submission.specs.items():
        bundle.add_spec(name, loaded, submission.overrides)
    for name, text in submission.texts.items():
        bundle.add_text(name, text)
    bundle.finish("20260101-100000-aaaaaa", [])
    sent, before = load_suite(folder / "suite.yaml"), load_suite(suite)
    assert sent.suite.model_copy(update={"specs": None}) == before.suite.model_copy(update={"specs": None})
    assert {path.relative_to(folder).as_posix() for path in sent.specs.values()} == {"specs/a.yaml", "specs/b.yaml"}
    there = load_spec(folder / "specs" / "a.yaml").spec
    assert there.compute.storage == f"{STORAGE}/x"
    assert there.data.source.parameters["path"] == "data/0-posts.jsonl"
    assert there.train.steps == 3


SUITE = {
    "version": 1, "suite": "two", "spec": "mails.yaml", "budgets": [4], "seeds": [1],
    "policies": {"uniform": {"noise": {"type": "uniform"}}},
}  # fmt: skip


def test_what_a_file_is_for(spec: Path) -> None:
    """Break: run whatever is submitted."""
    assert _verb_of("mails.yaml", []) is Verb.run
    space = {"clipping.norm": {"choice": [0.1, 1.0]}}
    (spec.parent / "search.yaml").write_text(yaml.safe_dump(document(sweep={"space": space})))
    assert _verb_of("search.yaml", []) is Verb.sweep
    assert _verb_of("search.yaml", ["sweep=null"]) is Verb.run
    (spec.parent / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    assert _verb_of("suite.yaml", []) is Verb.bench
    assert _verb_of("shakespeare", []) is Verb.bench
    assert _verb_of("quickstart", []) is Verb.run


def test_plugins_of_a_suites_policies_are_sent(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: look for plugins in the suite's specs alone."""
    monkeypatch.syspath_prepend(str(spec.parent))
    (spec.parent / "suite_plugin.py").write_text(
        "from policies.noise.uniform import Uniform\n\n\nclass Mine(Uniform):\n    'x'\n"
    )
    policies = {"mine": {"noise": {"type": "suite_plugin:Mine"}}}
    (spec.parent / "suite.yaml").write_text(yaml.safe_dump({**SUITE, "policies": policies}))
    submission = _submission("suite.yaml", [], Verb.bench, None, False, "python")
    assert "sends the plugin suite_plugin.py" in check(submission, send_data=True).notes


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ({"data.source.path": "others.jsonl"}, "can't change data.source"),
        ({"privacy.ledger": "sqlite:////root/l.db"}, "must lie in compute.storage"),
        ({"compute.storage": "/tmp/x"}, "must be the same in all specs"),
        ({"privacy.ledger": "postgresql://me:hunter2@db/l"}, "suite.yaml:.*privacy.ledger: holds a password"),
    ],
)
def test_policies_of_a_suite_change_neither_files_nor_ledger(spec: Path, policy: dict[str, str], wrong: str) -> None:
    """Break: look at the suite's specs alone."""
    (spec.parent / "suite.yaml").write_text(yaml.safe_dump({**SUITE, "policies": {"mine": policy}}))
    with pytest.raises(UserError, match=wrong) as caught:
        check(_submission("suite.yaml", [], Verb.bench, None, False, "python"), send_data=True)
    assert "hunter2" not in str(caught.value)
