"""What the harness relies on in a plugin, as checks that a plugin's own tests can call.

Each check raises `ConformanceError`, which says what is wrong in a line. They look at the plugin in this process and in
a fresh one, where reading files, opening connections and importing ray or torch are noticed as well.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.plugins import (
    Access,
    Group,
    Lever,
    MixedSegmenter,
    NoisePolicy,
    OwnRecordsScore,
    OwnRecordsSegmenter,
    Plugin,
    PluginError,
    Proposal,
    PublicSegmenter,
    Segmenter,
    SensitivityScore,
    SessionScore,
    SessionSegmenter,
    Source,
)

FORBIDDEN_MODULES = ("ray", "torch", "deepspeed", "transformers")
GROUPS = (Group("free", "free", None, 0.6), Group("paid", "paid", None, 0.3), Group("other", "other", None, 0.1))
_TIERS: dict[type[Plugin], Access] = {
    PublicSegmenter: Access.PUBLIC,
    OwnRecordsSegmenter: Access.OWN_RECORDS,
    OwnRecordsScore: Access.OWN_RECORDS,
    SessionSegmenter: Access.SESSION,
    SessionScore: Access.SESSION,
}
_DRAWS = (0, 1, 2)
"""Of the noise of a session over made users."""
_VALUES = ("a", "b", "c", "unheard of", None)
"""Of public columns; the first three occur in the data."""
_CHILD = "from harness.conformance import _child; _child()"


class ConformanceError(AssertionError):
    """A plugin does not keep to what the harness relies on."""


def check_segmenter(cls: type[Segmenter], parameters: Mapping[str, Any] | None = None) -> None:
    """Checks a segmentation: its access tier, its labels, and that it keeps nothing from one user for the next.

    One that learns is given a session over made users: it may ask its declared queries alone, each for one statistic,
    must lead to the same rule whenever it is told the same, and the rule is checked as an own-records rule is.

    Args:
        cls: The plugin; importable by its module and name.
        parameters: As a spec writes them.

    Raises:
        ConformanceError: It does not conform.
    """
    _check_kind(cls, Segmenter)
    _check_users(cls, dict(parameters or {}))


def check_score(cls: type[SensitivityScore], parameters: Mapping[str, Any] | None = None) -> None:
    """Checks a sensitivity score, or one that learns: as `check_segmenter`; and that scores are numbers in [0, 1]."""
    _check_kind(cls, SensitivityScore)
    _check_users(cls, dict(parameters or {}))


def check_noise_policy(
    cls: type[NoisePolicy],
    parameters: Mapping[str, Any] | None = None,
    groups: Sequence[Group] = GROUPS,
    epsilon: float = 8.0,
    equal: Mapping[str, Any] | None = None,
) -> None:
    """Checks a noise policy: its proposals, and that equal targets give every group the same levers.

    Args:
        cls: The plugin; importable by its module and name.
        parameters: As a spec writes them, for these `groups` and this budget.
        groups: With weights that sum to 1.
        epsilon: The budget.
        equal: Parameters with which all targets are `epsilon`; None: those of one group alone are looked at.

    Raises:
        ConformanceError: It does not conform.
    """
    _check_kind(cls, NoisePolicy)
    given = dict(parameters or {})
    proposal = _build(cls, given).propose(tuple(groups), epsilon)
    targets = _targets(cls, proposal, groups, epsilon)
    turned = _build(cls, given).propose(tuple(reversed(groups)), epsilon)
    if targets != _targets(cls, turned, groups, epsilon):
        raise ConformanceError(f"{cls.__name__} proposes something else when the groups come in another order")
    for budget in (epsilon / 2, epsilon / 10):
        try:
            found = _build(cls, given).propose(tuple(groups), budget)
        except PluginError:
            continue  # to refuse a budget is fine
        _targets(cls, found, groups, budget)
    if not cls.private:
        return
    some = dict(equal if equal is not None else given)
    even = _build(cls, some).propose(tuple(groups), epsilon)
    alike = _targets(cls, even, groups, epsilon)
    if equal is None:
        alike = dict.fromkeys(alike, epsilon)
    if len(set(alike.values())) != 1:
        raise ConformanceError(f"{cls.__name__} proposes different targets where they should be equal")
    _check_uniform(cls, even, alike, groups)
    answer = _fresh(cls, given, {"groups": [[g.name, g.segment, g.tier, g.weight] for g in groups], "epsilon": epsilon})
    if answer != targets:
        raise ConformanceError(f"{cls.__name__} proposes something else in another process")


def check_source(cls: type[Source], parameters: Mapping[str, Any] | None = None, **columns: Any) -> None:
    """Checks a source: the same records each time and in another process, and a public door that shows no text.

    Args:
        cls: The plugin; importable by its module and name.
        parameters: As a spec writes them, with absolute paths.
        **columns: ``user``, ``text`` and ``attributes``, as `harness.data.sources.base.Columns` has them.

    Raises:
        ConformanceError: It does not conform.
    """
    from harness.data.sources.base import RecordSource

    _check_kind(cls, RecordSource)
    asked = {"user": "user", "text": "text"} | columns
    here, again = _read(cls, dict(parameters or {}), asked), _read(cls, dict(parameters or {}), asked)
    if here != again:
        raise ConformanceError(f"{cls.__name__} reads something else the second time")
    if here["public"] != here["records"]:
        raise ConformanceError(f"{cls.__name__}: `public` and `records` disagree on users or their public columns")
    if _fresh(cls, dict(parameters or {}), {"columns": asked}, files=True) != here:
        raise ConformanceError(f"{cls.__name__} reads something else in another process")


# --- segmentations and scores -------------------------------------------------------------------------------


def _check_kind(cls: type, base: type) -> None:
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConformanceError(f"{cls!r} is no subclass of {base.__name__}")
    for tier, access in _TIERS.items():
        if issubclass(cls, tier) and getattr(cls, "access", None) is not access:
            raise ConformanceError(f"{cls.__name__} is a {tier.__name__} and must have the access tier {access.value}")


def _build(cls: type[Any], parameters: Mapping[str, Any]) -> Any:
    return cls.of(cls.Parameters.model_validate(dict(parameters)))


def _users(plugin: Any, columns: Sequence[str] = ()) -> list[Any]:
    """Made users: from nothing to a lot, some alike; with any values in the public columns, and what `plugin` uses."""
    from harness.data.views import made_view
    from harness.plugins import UserRecords

    found = []
    for u in range(40):
        counts = tuple(1 + (7 * u + 11 * p) % (20 * u + 1) for p in range(u % 9))
        texts = tuple(f"user {u} writes {'ab ' * (count % 50)}" for count in counts)
        attributes = _Watched(dict.fromkeys(columns, _VALUES[u % len(_VALUES)]))
        times = tuple(None if (u + p) % 5 == 0 else 1.7e9 - 7e4 * u + 900 * p * p for p in range(len(counts)))
        known = times if plugin.uses_times else ()
        examples = max(1, sum(counts) // 64) if counts else 0
        view = made_view(u, min(examples, 8), 16) if plugin.uses_model else None
        found.append(UserRecords(texts, counts, examples, attributes, known, view))
    return found


class _Watched(dict[str, str | None]):
    """The public columns of a user; a look at any other one is noticed."""

    def __missing__(self, key: str) -> str | None:
        raise ConformanceError(f'a public rule looked at the column "{key}", which it had not declared')

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return self.__missing__(key)
        return super().get(key, default)


def _answers(cls: type[Any], parameters: Mapping[str, Any], *, backwards: bool) -> list[Any]:
    """What one instance says of all users, in the order of the users."""
    plugin = _build(cls, parameters)
    if isinstance(plugin, SessionSegmenter | SessionScore):
        rules = [_learned(plugin, _build(cls, parameters), draw) for draw in _DRAWS]
        return [answer for rule in rules for answer in _asked(rule, _users(plugin), plugin, backwards=backwards)]
    if isinstance(plugin, PublicSegmenter):
        domain = {column: _VALUES[:3] for column in plugin.columns}
        plugin = plugin.bind(domain)
        users: list[Any] = [_Watched(dict.fromkeys(plugin.columns, v)) for v in _VALUES]
    else:
        users = _users(plugin, plugin.columns if isinstance(plugin, MixedSegmenter) else ())
    return _asked(plugin, users, plugin, backwards=backwards)


def _asked(plugin: Any, users: Sequence[Any], announced: Any, *, backwards: bool) -> list[Any]:
    """What a rule or score says of these users; `announced` has the segments."""
    ask = plugin.score if isinstance(plugin, OwnRecordsScore) else plugin.assign
    order = range(len(users))[:: -1 if backwards else 1]
    found = {i: ask(users[i]) for i in order}
    answers = [found[i] for i in range(len(users))]
    _check_answers(announced, answers)
    return answers


def _learned(plugin: Any, other: Any, draw: int) -> OwnRecordsSegmenter | OwnRecordsScore:
    """The rule that two instances learn alike."""
    from harness.data import portable, trial

    name = type(plugin).__name__
    try:
        if plugin.queries != other.queries:
            raise PluginError("declares other queries the second time")
        rule, again = (trial.learn(one, _users(one), draw) for one in (plugin, other))
        if portable.parts(rule) != portable.parts(again):
            raise PluginError("learns another rule from the same answers")
    except PluginError as error:
        raise ConformanceError(f"{name} {error.message}") from None
    return rule


def _check_answers(plugin: Any, answers: list[Any]) -> None:
    name = type(plugin).__name__
    if isinstance(plugin, SensitivityScore):
        for value in answers:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConformanceError(f"{name} gives the score {value!r}; a score is a number in [0, 1]")
        return
    segments = plugin.segments
    if not segments or len(set(segments)) != len(segments) or not all(isinstance(s, str) and s for s in segments):
        raise ConformanceError(f"{name} must announce at least one segment, all with different names")
    if unknown := [a for a in answers if a not in segments]:
        raise ConformanceError(f"{name} names the segment {unknown[0]!r}, which is not among `segments`")


def _check_users(cls: type[Any], parameters: dict[str, Any]) -> None:
    built = type(_build(cls, parameters))  # a subclass, where parameters decide the access tier
    _check_kind(built, cls)
    if not issubclass(built, tuple(_TIERS)):
        raise ConformanceError(f"{cls.__name__} must derive from {', '.join(t.__name__ for t in _TIERS)}")
    first = _answers(cls, parameters, backwards=False)
    if first != _answers(cls, parameters, backwards=True):
        raise ConformanceError(f"{cls.__name__} answers otherwise when the users come in another order: it keeps state")
    if first != _fresh(cls, parameters, {}):
        raise ConformanceError(f"{cls.__name__} answers otherwise in another process")


# --- noise policies -----------------------------------------------------------------------------------------


def _targets(cls: type, proposal: Any, groups: Sequence[Group], epsilon: float) -> dict[str, float]:
    if not isinstance(proposal, Proposal) or not isinstance(proposal.lever, Lever):
        raise ConformanceError(f"{cls.__name__} must propose a Proposal with a Lever")
    if proposal.epsilon is None:
        if getattr(cls, "private", True):
            raise ConformanceError(f"{cls.__name__} proposes no target, and does not say `private = False`")
        return {}
    found = {}
    for group in groups:
        target = proposal.epsilon.get(group.name)
        number = isinstance(target, int | float) and math.isfinite(target)
        if target is None or not number or not 0 < target <= epsilon:
            raise ConformanceError(f'{cls.__name__} proposes {target} for "{group.name}" under the budget {epsilon:g}')
        found[group.name] = float(target)
    return found


def _check_uniform(cls: type, proposal: Proposal, targets: Mapping[str, float], groups: Sequence[Group]) -> None:
    from harness.privacy.levers import calibrate, stretches
    from harness.privacy.terms import Terms

    unit: Literal["user", "example"] = "example" if proposal.lever is Lever.EXAMPLES else "user"
    weights, schedule = {g.name: g.weight or 1 / len(groups) for g in groups}, stretches(proposal.schedule, 20)
    terms = Terms(weights, 1000.0, 0.02, 20, 1e-5, 0.5, 2, accountant="rdp", unit=unit, schedule=schedule)
    for g in calibrate(proposal, targets, terms).groups:
        close = abs(g.clip_norm / 0.5 - 1) <= 1e-6 and abs(g.sampling_rate / 0.02 - 1) <= 1e-6
        if not close or (g.steps, g.examples_per_user) != (20, 2):
            raise ConformanceError(f"{cls.__name__}: equal targets do not give uniform levers")


# --- sources ------------------------------------------------------------------------------------------------


def _read(cls: type[Any], parameters: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    import hashlib

    from harness.data.sources.base import Columns, Record

    asked = Columns(columns["user"], columns["text"], tuple(columns.get("attributes", ())))
    source = _build(cls, parameters).located(Path.cwd())
    digest, records = hashlib.blake2b(key=b"conformance"), []
    texts = hashlib.blake2b()
    for one in source.records(asked):
        if one.user is not None:
            records.append([one.user, dict(one.attributes)])
        if isinstance(one, Record):
            texts.update(one.text.encode() + b"\0")
    source.fingerprint(digest.update)
    public = [[user, dict(attributes)] for user, attributes in source.public(asked)]
    return {"records": records, "public": public, "texts": texts.hexdigest(), "fingerprint": digest.hexdigest()}


# --- a fresh process ----------------------------------------------------------------------------------------


def _fresh(cls: type, parameters: Mapping[str, Any], extra: Mapping[str, Any], *, files: bool = False) -> Any:
    """What the plugin answers in a process of its own, where its reach is watched."""
    job = {"module": cls.__module__, "name": cls.__qualname__, "parameters": parameters, "files": files, **extra}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    environment["PYTHONHASHSEED"] = "4242"
    command = [sys.executable, "-c", _CHILD]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConformanceError(f"{cls.__name__} fails in a fresh process: {last}")
    document = json.loads(done.stdout.splitlines()[-1])
    if document["reached"]:
        raise ConformanceError(f"{cls.__name__} reaches for {', '.join(document['reached'])}")
    return document["answer"]


def _child() -> None:
    """Runs one job from stdin: the other side of `_fresh`."""
    import tempfile

    from harness.data.quiet import LOG, Quiet

    with tempfile.TemporaryDirectory() as folder:
        with Quiet(Path(folder)):  # before opening files is noticed
            document = _answer_job()
        if (Path(folder) / LOG).exists():
            document["reached"].append("the console (it prints, logs or warns)")
    print(json.dumps(document))


def _answer_job() -> dict[str, Any]:
    import importlib

    job = json.loads(sys.stdin.read())
    cls: Any = importlib.import_module(job["module"])
    for part in job["name"].split("."):
        cls = getattr(cls, part)
    reached: dict[str, None] = dict.fromkeys(m for m in FORBIDDEN_MODULES if m in sys.modules)
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0]:
            reached.update(dict.fromkeys(_reach(event, arguments, files=job["files"])))

    sys.addaudithook(watch)
    if "groups" in job:
        groups = [Group(*g) for g in job["groups"]]
        proposal = _build(cls, job["parameters"]).propose(groups, job["epsilon"])
        answer: Any = _targets(cls, proposal, groups, job["epsilon"])
    elif "columns" in job:
        answer = _read(cls, job["parameters"], job["columns"])
    else:
        answer = _answers(cls, job["parameters"], backwards=False)
    watching[0] = False
    reached.update(dict.fromkeys(m for m in FORBIDDEN_MODULES if m in sys.modules))
    return {"answer": answer, "reached": list(reached)}


def _reach(event: str, arguments: tuple[Any, ...], *, files: bool) -> Iterator[str]:
    """What an audit event of Python means, where a plugin has no business with it."""
    if event in ("socket.connect", "socket.getaddrinfo"):
        yield "the network"
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        yield "another program"
    elif event == "open" and not files:
        path = str(arguments[0])
        looked_up = path in sys.path  # what is installed is
        if not looked_up and not path.endswith(
            (".py", ".pyc", ".so", ".json", ".toml", "METADATA", "entry_points.txt")
        ):
            yield f"the file {Path(path).name}"
