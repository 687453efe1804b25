"""What is sent: whole, small, and nothing that was not meant."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cluster import bundle as bundles
from harness.cluster.bundle import Bundle
from harness.cluster.submitting import Submission, check
from harness.errors import ArgumentError
from harness.spec import load_spec
from tests.cluster.conftest import STORAGE, Laptop, document, told


def packed(submission: Submission, folder: Path) -> Bundle:
    found = Bundle(folder, Path(STORAGE))
    for name, loaded in submission.specs.items():
        found.add_spec(name, loaded, submission.overrides)
    found.finish("20260101-100000-aaaaaa", ["harness", "run", "spec.yaml"])
    return found


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_the_merged_spec_and_small_data(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Break: leave the overrides out of what is merged."""
    folder = tmp_path_factory.mktemp("bundle")
    (laptop.folder / "base.yaml").write_text(yaml.safe_dump(document()))
    spec = laptop.folder / "child.yaml"
    spec.write_text("extends: base.yaml\nname: child\nprivacy: {epsilon: 4}\n")
    loaded = load_spec(spec, ["train.steps=7"])
    found = packed(Submission("run", {"spec.yaml": loaded}, ["train.steps=7"], "child"), folder)
    assert names(folder) == {"spec.yaml", "job.json", "uudp_job.py", "data/0-posts.jsonl"}
    assert (folder / "data/0-posts.jsonl").read_bytes() == (laptop.folder / "posts.jsonl").read_bytes()
    sent = load_spec(folder / "spec.yaml")
    expected = dict(loaded.resolved, data={**loaded.resolved["data"], "source": sent.resolved["data"]["source"]})
    assert sent.resolved == expected
    assert sent.resolved["data"]["source"]["path"] == "data/0-posts.jsonl"
    assert told(folder)["storage"] == STORAGE
    assert found.private == [str(laptop.folder / "posts.jsonl")]


def test_interpolations_and_what_was_left_out_stay_so(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A search or a suite changes them there. Break: send the resolved spec."""
    folder = tmp_path_factory.mktemp("bundle")
    packed(laptop.submission(report={"tokens": "${train.steps}"}), folder)
    sent = yaml.safe_load((folder / "spec.yaml").read_text())
    assert sent["report"]["tokens"] == "${train.steps}"
    assert "clipping" not in sent


def test_an_ignored_spec_does_not_vanish(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ray's own packing of the bundle. Break: copy .gitignore with a folder."""
    from ray._private.runtime_env.packaging import create_package

    for name in (".gitignore", ".rayignore"):
        (laptop.folder / name).write_text("*\n")
    sets = laptop.folder / "set"
    sets.mkdir()
    (sets / ".gitignore").write_text("*\n")
    (sets / "train.jsonl").write_bytes((laptop.folder / "posts.jsonl").read_bytes())
    folder = tmp_path_factory.mktemp("bundle")
    packed(laptop.submission(data={"source": {"type": "huggingface", "path": "set"}}), folder)
    package = tmp_path_factory.mktemp("zip") / "package.zip"
    create_package(str(folder), package, include_gitignore=True)
    assert set(zipfile.ZipFile(package).namelist()) >= {
        "spec.yaml", "job.json", "uudp_job.py", "data/0-set/train.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize("path", [f"{STORAGE}/posts.jsonl", "/nowhere/here/posts.jsonl", "s3://bucket/posts/*.jsonl"])
def test_data_of_the_cluster_stay_there(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    found = packed(laptop.submission(data={"source": {"type": "jsonl", "path": path}}), folder)
    assert found.remote
    assert any(note.startswith(f"data.source.path: {path}") for note in found.notes)
    assert yaml.safe_load((folder / "spec.yaml").read_text())["data"]["source"]["path"] == path


@pytest.mark.parametrize(
    "path", ["s3://AKIA:hunter2@bucket/x", "s3://bucket/x?secret_key=hunter2", "S3://A:hunter2@b/x"]
)
def test_a_key_is_neither_sent_nor_shown(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    """Break: leave it to the cluster to look at URLs."""
    folder = tmp_path_factory.mktemp("bundle")
    for changes in ({"source": {"type": "jsonl", "path": path}}, {"holdout": {"file": path, "visibility": "public"}}):
        with pytest.raises(ArgumentError, match=r"^data\.(source\.path|holdout\.file): (holds a key|only )") as raised:
            packed(laptop.submission(data=changes), folder)
        assert "hunter2" not in str(raised.value)
    assert not any("hunter2" in path.read_text() for path in folder.rglob("*") if path.is_file())


def test_a_relative_path_to_nothing_is_refused(laptop: Laptop, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"data.source.path: there is no file mails.jsonl"):
        packed(laptop.submission(data={"source": {"type": "jsonl", "path": "mails.jsonl"}}), tmp_path / "b")


def test_what_is_too_large_is_named(
    laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break: compare with Ray's own limit, which its upload reaches first."""
    monkeypatch.setattr(bundles, "LARGEST", 1000)
    with pytest.raises(ArgumentError, match=r"this would send \d+ KiB, .*the largest: .*/posts.jsonl \(\d+ KiB\)"):
        packed(laptop.submission(), tmp_path_factory.mktemp("bundle"))
    assert 64 * 1024**2 < 100 * 1024**2


def test_local_plugins_go_along_with_what_they_import(
    laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break: leave out what a module imports."""
    monkeypatch.syspath_prepend(str(laptop.folder))
    (laptop.folder / "sent_plugin.py").write_text(
        "import numpy\nimport sent_helper\nfrom policies.noise.uniform import Uniform\n\n\n"
        "class Mine(Uniform):\n    '''x'''\n"
    )
    (laptop.folder / "sent_helper").mkdir()
    (laptop.folder / "sent_helper" / "__init__.py").write_text("")
    (laptop.folder / "unrelated.py").write_text("")
    folder = tmp_path_factory.mktemp("bundle")
    packed(laptop.submission(noise={"type": "sent_plugin:Mine"}), folder)
    assert names(folder) - {"spec.yaml", "job.json", "uudp_job.py", "data/0-posts.jsonl"} == {
        "sent_plugin.py", "sent_helper/__init__.py",
    }  # fmt: skip


def test_private_records_take_consent(laptop: Laptop) -> None:
    """Break: ask for consent to public data only."""
    with pytest.raises(ArgumentError, match=r"holds private records: .* or say --send-data"):
        check(laptop.submission(), send_data=False)
    checked = check(laptop.submission(), send_data=True)
    assert checked.plan is not None
    assert checked.plan.mechanism.steps == 3
    public = laptop.submission(data={"visibility": "public"})
    assert check(public, send_data=False).plan is not None


def test_each_spec_of_a_suite_has_its_own_base_model(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Break: call what is sent `model`, whatever it is."""
    for name in ("one", "two"):
        (laptop.folder / name).mkdir()
        (laptop.folder / name / "config.json").write_text(name)
    folder = tmp_path_factory.mktemp("bundle")
    found = Bundle(folder, Path(STORAGE))
    for name, base in (("a", "one"), ("b", "two"), ("c", "one")):
        found.add_spec(f"specs/{name}.yaml", load_spec(laptop.spec(model={"base": base})), [])
    found.finish("20260101-100000-aaaaaa", [])
    sent = {name: yaml.safe_load((folder / f"specs/{name}.yaml").read_text())["model"]["base"] for name in "abc"}
    assert {name: (folder / base / "config.json").read_text() for name, base in sent.items()} == {
        "a": "one", "b": "two", "c": "one",
    }  # fmt: skip


def test_what_is_hidden_in_a_plugins_folder_stays(
    laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break: copy .env with it."""
    monkeypatch.syspath_prepend(str(laptop.folder))
    own = laptop.folder / "hiding_plugin"
    own.mkdir()
    (own / "__init__.py").write_text("from policies.noise.uniform import Uniform\n\n\nclass Mine(Uniform):\n    'x'\n")
    (own / ".env").write_text("HF_TOKEN=hf_abc")
    folder = tmp_path_factory.mktemp("bundle")
    packed(laptop.submission(noise={"type": "hiding_plugin:Mine"}), folder)
    assert "hiding_plugin/__init__.py" in names(folder)
    assert not any(name.endswith(".env") for name in names(folder))


def test_of_a_plugins_folder_only_code_is_sent(
    laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any folder that a plugin imports from is a package, and records may lie in it. Break: send it whole."""
    monkeypatch.syspath_prepend(str(laptop.folder))
    (laptop.folder / "coded_plugin.py").write_text(
        "import coded_data.tools\nfrom policies.noise.uniform import Uniform\n\n\nclass Mine(Uniform):\n    'x'\n"
    )
    own = laptop.folder / "coded_data"
    (own / "private").mkdir(parents=True)
    for name in ("tools.py", "mails.jsonl", "private/notes.py"):
        (own / name).write_text("")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "more.py").write_text("")
    (own / "linked").symlink_to(elsewhere)
    (own / "link.py").symlink_to(elsewhere / "more.py")
    folder = tmp_path_factory.mktemp("bundle")
    found = packed(laptop.submission(noise={"type": "coded_plugin:Mine"}, data={"visibility": "public"}), folder)
    assert {name for name in names(folder) if name.startswith("coded_")} == {"coded_plugin.py", "coded_data/tools.py"}
    assert "sends the plugin coded_data (its .py files alone)" in found.notes


def test_what_can_t_be_read_is_named(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Break: let the system's error out, which would be taken for a bug of ours."""
    sets = laptop.folder / "set"
    sets.mkdir()
    (sets / "train.jsonl").write_bytes((laptop.folder / "posts.jsonl").read_bytes())
    (sets / "more").symlink_to("nowhere")
    with pytest.raises(ArgumentError, match=r"set/more can't be sent"):
        packed(laptop.submission(data={"source": {"type": "huggingface", "path": "set"}}), tmp_path_factory.mktemp("b"))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("data.source.path", {"source": {"type": "huggingface", "path": "more*.jsonl"}}),
        ("data.holdout.file", {"holdout": {"file": "more*.jsonl", "users": 0.0, "visibility": "public"}}),
    ],
)
def test_several_files_for_a_key_that_takes_one_are_refused_here(
    laptop: Laptop, tmp_path_factory: pytest.TempPathFactory, key: str, changes: dict[str, Any]
) -> None:
    """Break: write a list, which the cluster's uudp refuses once all is sent."""
    for name in ("more1.jsonl", "more2.jsonl"):
        (laptop.folder / name).write_bytes((laptop.folder / "posts.jsonl").read_bytes())
    with pytest.raises(ArgumentError, match=rf"^{key}: more\*.jsonl names 2 files, which can't be sent"):
        packed(laptop.submission(data=changes), tmp_path_factory.mktemp("bundle"))
