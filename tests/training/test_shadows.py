"""What keeps Ray from working: a folder of our packages' names, which it would put first; a busy machine."""

from __future__ import annotations

import sys
import types

import pytest
import ray

from harness.errors import ArgumentError, MachineError
from harness.training.ray import check_shadows, check_worker
from harness.training.ray_session import start_ray


@pytest.mark.parametrize("name", ["harness", "policies"])
def test_a_shadowing_folder_is_named_before_ray_starts(tmp_path, name):
    """Break: the call of `find_spec` for one of the names."""
    (tmp_path / name).mkdir()
    check_shadows(tmp_path)  # a folder that is no package harms nobody
    (tmp_path / name / "__init__.py").write_text("")
    with pytest.raises(ArgumentError, match=f"{tmp_path}/{name}.* shadows uudp's own package `{name}`"):
        check_shadows(tmp_path)


def test_a_ray_that_does_not_start_is_said_so_in_a_line(monkeypatch):
    """A busy machine; nothing of ours is wrong. Break: let what Ray raises pass (a traceback of "Exception")."""

    def fail(**_):
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(MachineError, match=r"^Ray did not start; .* \(Exception: The current node timed out during"):
        start_ray()


def test_a_worker_that_imported_another_package_says_so(tmp_path, monkeypatch):
    """Break: `policies` left out of `check_worker`."""
    check_worker()
    other = types.ModuleType("policies")
    other.__file__ = str(tmp_path / "policies" / "__init__.py")
    monkeypatch.setitem(sys.modules, "policies", other)
    with pytest.raises(ArgumentError, match="shadows uudp's own package `policies` on a Ray worker"):
        check_worker()
