"""Starts a package with a plugin of one's own: installable, announced by an entry point, with its conformance test."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from harness.errors import ArgumentError
from harness.spec.catalog import KINDS

_LONGEST_NAME = 60
# Its folder would shadow a package of ours, or YAML would read it as something else than text.
_RESERVED = {"policies", "harness", "uudp", "true", "false", "yes", "no", "on", "off", "null"}

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77.0.3"]
build-backend = "setuptools.build_meta"

[project]
name = "uudp-@name@"
version = "0.1.0"
description = "The @kind@ plugin @name@ for uudp."
requires-python = ">=3.11"
dependencies = ["uudp"]

# A spec says `type: @name@`; uudp finds it here.
[project.entry-points."uudp.@kind@"]
@name@ = "@module@:@cls@"

[tool.setuptools]
py-modules = ["@module@"]
"""
_SEGMENTATION = '''\
"""Segments by whether a user wrote much."""

from __future__ import annotations

from pydantic import Field

from harness.plugins import OwnRecordsSegmenter, PluginParameters, UserRecords


class @cls@Parameters(PluginParameters):
    """Parameters of `@name@`."""

    edge: int = Field(default=10, ge=1, description="a public constant: so many records, or more, are much")


class @cls@(OwnRecordsSegmenter):
    """Two segments, by one user's own records.

    Say here what it is good for. It sees one user at a time, and must keep nothing between users.
    """

    Parameters = @cls@Parameters
    parameters: @cls@Parameters

    @property
    def segments(self) -> tuple[str, ...]:
        """The public names of all segments."""
        return ("little", "much")

    def assign(self, user: UserRecords) -> str:
        """The segment of the user with these records."""
        return "much" if len(user.texts) >= self.parameters.edge else "little"
'''
_SENSITIVITY = '''\
"""Sensitivity by the length of a user's longest text."""

from __future__ import annotations

from pydantic import Field

from harness.plugins import OwnRecordsScore, PluginParameters, UserRecords


class @cls@Parameters(PluginParameters):
    """Parameters of `@name@`."""

    full: int = Field(default=1000, ge=1, description="a public constant: so many tokens in one text score 1")


class @cls@(OwnRecordsScore):
    """A score from 0 to 1, by one user's own records.

    Say here what it is good for. It sees one user at a time, and must keep nothing between users.
    """

    Parameters = @cls@Parameters
    parameters: @cls@Parameters

    def score(self, user: UserRecords) -> float:
        """How much is at stake for the user with these records."""
        return min(1.0, max(user.token_counts, default=0) / self.parameters.full)
'''
_NOISE = '''\
"""Targets for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from harness.plugins import Group, Lever, NoisePolicy, PluginParameters, Proposal


class @cls@Parameters(PluginParameters):
    """Parameters of `@name@`."""

    strictest: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="the last group's share of the budget; the groups before it lie between"
    )


class @cls@(NoisePolicy):
    """The first group at the whole budget, the last one at a share of it.

    Say here what it is good for. A policy proposes; uudp calibrates, accounts and executes.
    """

    Parameters = @cls@Parameters
    parameters: @cls@Parameters

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """Targets by the groups' names, in alphabetical order."""
        names = sorted(group.name for group in groups)
        step = (1 - self.parameters.strictest) / max(1, len(names) - 1)
        return Proposal({name: epsilon * (1 - i * step) for i, name in enumerate(names)}, Lever.CLIP_NORM)
'''
_TEST = '''\
"""What uudp relies on."""

from harness import plugins
from harness.conformance import @check@
from @module@ import @cls@


def test_it_conforms():
    @check@(@cls@@arguments@)


def test_uudp_finds_it():
    assert plugins.@kind@.get("@name@") is @cls@
'''
_KINDS = {
    "segmentation": (_SEGMENTATION, "check_segmenter", ', {"edge": 3}'),
    "sensitivity": (_SENSITIVITY, "check_score", ', {"full": 50}'),
    "noise": (_NOISE, "check_noise_policy", ', equal={"strictest": 1.0}'),
}


def scaffold(kind: str, name: str) -> tuple[Path, list[str]]:
    """Writes the package into ``./NAME``.

    Args:
        kind: ``segmentation``, ``sensitivity`` or ``noise``.
        name: What specs will write after ``type:``.

    Returns:
        The folder, and the files in it.

    Raises:
        ArgumentError: No such kind, a name that can't be used or is taken, or the folder exists.
        PluginError: Two packages announce the same name.
    """
    from harness.plugins import suggest

    if kind not in _KINDS:
        near = suggest(kind, _KINDS)
        hint = f'; did you mean "{near}"?' if near else f" (there are: {', '.join(_KINDS)})"
        raise ArgumentError(f'policies new: "{kind}" is no kind of plugin that can be started{hint}')
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ArgumentError("policies new: a name is lower-case letters, digits and _, the first a letter")
    if len(name) > _LONGEST_NAME:
        raise ArgumentError(f"policies new: a name has at most {_LONGEST_NAME} characters")
    if keyword.iskeyword(name) or name in _RESERVED:
        raise ArgumentError(f'policies new: "{name}" means something to Python, YAML or uudp; take another name')
    if name in KINDS[kind].targets() or KINDS[kind].is_reserved(name):
        raise ArgumentError(f'policies new: uudp has, or will have, a {kind} "{name}" of its own')
    module = f"uudp_{name}"
    if module in sys.stdlib_module_names:
        raise ArgumentError(f"policies new: {module} is a module of Python's own")
    folder = Path(name)
    if folder.exists() or folder.is_symlink():
        raise ArgumentError(f"policies new: {folder} exists already; nothing was written")
    text, check, arguments = _KINDS[kind]
    cls = "".join(part.capitalize() for part in name.split("_"))
    words = {"kind": kind, "name": name, "module": module, "cls": cls, "check": check, "arguments": arguments}
    files = {"pyproject.toml": _PYPROJECT, f"{module}.py": text, f"test_{module}.py": _TEST}
    try:
        folder.mkdir(parents=True)
        for file, template in files.items():
            (folder / file).write_text(re.sub(r"@(\w+)@", lambda m: words[m[1]], template), encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"policies new: can't write {folder}: {error.strerror}") from None
    return folder, sorted(files)
