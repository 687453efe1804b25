"""Starts a package with a plugin of one's own: installable, announced by an entry point, with its conformance test."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
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
_README = """\
# @name@

A @kind@ plugin for uudp. What it does is in `@module@.py`; `test_@module@.py` checks what uudp relies on.

    pip install -e .
    pytest
    uudp policies show @name@

Then a spec can say

    @usage@
"""
_MODULE = '''\
"""@summary@"""

from __future__ import annotations
@imports@
from pydantic import Field

from harness.plugins import @names@


@before@class @cls@Parameters(PluginParameters):
    """Parameters of `@name@`."""

    @parameter@


class @cls@(@base@):
    """@headline@

    Say here what it is good for. @limits@
    """

    Parameters = @cls@Parameters
    parameters: @cls@Parameters

@methods@'''
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
_ONE_USER = "It sees one user at a time, and must keep nothing between users."
_KINDS = {
    "segmentation": {
        "usage": "segmentation: {type: @name@, edge: 10}",
        "summary": "Segments by whether a user wrote much.",
        "imports": "",
        "names": "OwnRecordsSegmenter, PluginParameters, UserRecords",
        "base": "OwnRecordsSegmenter",
        "parameter": 'edge: int = Field(default=10, ge=1, description="a constant: so many records are much")',
        "headline": "Two segments, by one user's own records.",
        "limits": _ONE_USER,
        "methods": '''\
    @property
    def segments(self) -> tuple[str, ...]:
        """The public names of all segments."""
        return ("little", "much")

    def assign(self, user: UserRecords) -> str:
        """The segment of the user with these records."""
        return "much" if len(user.texts) >= self.parameters.edge else "little"
''',
        "check": "check_segmenter",
        "arguments": ', {"edge": 3}',
    },
    "session": {
        "usage": "segmentation: {type: @name@, noise_multiplier: 50}",
        "summary": "Segments by whether a user wrote more than most: by an edge that is learned, and charged.",
        "imports": "",
        "names": """(
    OwnRecordsSegmenter,
    PluginParameters,
    PrivateSession,
    Query,
    SessionSegmenter,
    Statistic,
    UserRecords,
)""",
        "before": '''\
class Tokens(Statistic):
    """What one user contributes to the query: the tokens of their records."""

    def value(self, user: UserRecords) -> float:
        """The tokens of the user with these records."""
        return float(sum(user.token_counts))


class @cls@Rule(OwnRecordsSegmenter):
    """The rule that was learned. It sees one user at a time, and must keep nothing between users."""

    def __init__(self, edge: float) -> None:
        super().__init__(PluginParameters())
        self.edge = edge

    @property
    def segments(self) -> tuple[str, ...]:
        """The public names of all segments."""
        return ("little", "much")

    def assign(self, user: UserRecords) -> str:
        """The segment of the user with these records."""
        return "much" if sum(user.token_counts) >= self.edge else "little"


''',
        "base": "SessionSegmenter",
        "parameter": 'noise_multiplier: float = Field(default=50.0, gt=0, description="noise of the one query")',
        "headline": "Two segments, split at the noisy median of the users' tokens.",
        "limits": "It sees noisy answers alone; every user is charged for all declared queries.",
        "methods": '''\
    @property
    def segments(self) -> tuple[str, ...]:
        """The public names of all segments."""
        return ("little", "much")

    @property
    def queries(self) -> tuple[Query, ...]:
        """The median, between powers of two."""
        edges = tuple(2.0**i for i in range(21))
        return (Query("median", "quantile", self.parameters.noise_multiplier, quantile=0.5, edges=edges),)

    def fit(self, session: PrivateSession) -> @cls@Rule:
        """Asks for the median and returns the rule that it leads to."""
        answer = session.ask("median", Tokens())
        assert isinstance(answer.value, float)
        return @cls@Rule(answer.value)
''',
        "check": "check_segmenter",
        "arguments": "",
    },
    "sensitivity": {
        "usage": "sensitivity: {scores: [{type: @name@}], tiers: {edges: [0.5], names: [low, high]}}",
        "summary": "Sensitivity by the length of a user's longest text.",
        "imports": "",
        "names": "OwnRecordsScore, PluginParameters, UserRecords",
        "base": "OwnRecordsScore",
        "parameter": 'full: int = Field(default=1000, ge=1, description="a constant: so many tokens score 1")',
        "headline": "A score from 0 to 1, by one user's own records.",
        "limits": _ONE_USER,
        "methods": '''\
    def score(self, user: UserRecords) -> float:
        """How much is at stake for the user with these records."""
        return min(1.0, max(user.token_counts, default=0) / self.parameters.full)
''',
        "check": "check_score",
        "arguments": ', {"full": 50}',
    },
    "noise": {
        "usage": "noise: {type: @name@, strictest: 0.5}",
        "summary": "Targets for each group.",
        "imports": "\nfrom collections.abc import Sequence\n",
        "names": "Group, Lever, NoisePolicy, PluginParameters, Proposal",
        "base": "NoisePolicy",
        "parameter": 'strictest: float = Field(default=0.5, gt=0, le=1, description="the last group\'s share of ε")',
        "headline": "The first group at the whole budget, the last one at a share of it, the others between them.",
        "limits": "A policy proposes; uudp calibrates, accounts and executes.",
        "methods": '''\
    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """Targets by the groups' names, in alphabetical order."""
        names = sorted(group.name for group in groups)
        step = (1 - self.parameters.strictest) / max(1, len(names) - 1)
        return Proposal({name: epsilon * (1 - i * step) for i, name in enumerate(names)}, Lever.CLIP_NORM)
''',
        "check": "check_noise_policy",
        "arguments": ', equal={"strictest": 1.0}',
    },
}


def scaffold(kind: str, name: str) -> tuple[Path, list[str]]:
    """Writes the package into ``./NAME``.

    Args:
        kind: ``segmentation``, ``session`` (a segmentation that learns from noisy answers), ``sensitivity`` or
            ``noise``.
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
    registry = "segmentation" if kind == "session" else kind
    if name in KINDS[registry].targets() or KINDS[registry].is_reserved(name):
        raise ArgumentError(f'policies new: uudp has, or will have, a {registry} "{name}" of its own')
    module = f"uudp_{name}"
    if module in sys.stdlib_module_names:
        raise ArgumentError(f"policies new: {module} is a module of Python's own")
    folder = Path(name)
    if folder.exists() or folder.is_symlink():
        raise ArgumentError(f"policies new: {folder} exists already; nothing was written")
    cls = "".join(part.capitalize() for part in name.split("_"))
    words = {"kind": registry, "name": name, "module": module, "cls": cls, "before": ""} | _KINDS[kind]
    files = {"pyproject.toml": _PYPROJECT, "README.md": _README, f"{module}.py": _MODULE, f"test_{module}.py": _TEST}
    try:
        folder.mkdir(parents=True)
        for file, template in files.items():
            (folder / file).write_text(_filled(template, words), encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"policies new: can't write {folder}: {error.strerror}") from None
    return folder, sorted(files)


def _filled(template: str, words: Mapping[str, str]) -> str:
    """A template with its words put in, and the words that those hold."""
    once = re.sub(r"@(\w+)@", lambda m: words[m[1]], template)
    return re.sub(r"@(\w+)@", lambda m: words[m[1]], once)
