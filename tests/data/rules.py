"""Plugins for the rooms' tests: an honest segmenter that learns, and hostile ones. They import nothing heavy."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from typing import ClassVar

from harness.plugins import (
    MixedSegmenter,
    OwnRecordsScore,
    OwnRecordsSegmenter,
    PluginError,
    PluginParameters,
    Query,
    SessionSegmenter,
    Statistic,
)

SECRET = "my heart is a SECRET"
EARLY = os.pipe()
"""Made while the module is imported."""
SEEN: list[object] = []


class Tokens(Statistic):
    """A user's tokens."""

    def value(self, user):
        return float(sum(user.token_counts))


class One(Statistic):
    def __init__(self, label=""):
        self.label = label

    def value(self, user):
        return 1.0


class Pauses(Statistic):
    """A user's times, as a room was given them."""

    def value(self, user):
        return [-1.0 if time is None else time for time in user.times]


class LastTime(OwnRecordsSegmenter):
    """Two segments, by whether a user wrote after 1970."""

    segments = ("early", "late")
    uses_times = True

    def assign(self, user):
        return "late" if max(time for time in user.times if time is not None) > 0 else "early"


class TokenRule(OwnRecordsSegmenter):
    """Two segments, by an edge that was learned."""

    segments = ("little", "much")

    def __init__(self, edge):
        super().__init__(PluginParameters())
        self.edge = edge

    def assign(self, user):
        return "much" if sum(user.token_counts) >= self.edge else "little"


# --- attacks on the user room: each says 1.0 where it saw, or left, more than it may ------------------------


def allowed(attempt):
    """Whether it went through."""
    try:
        attempt()
    except (OSError, ImportError):
        return 0.0
    return 1.0


def counter(thing, user, argument):
    SEEN.append(user.texts)
    return float(len(SEEN) > 1)


def attribute(thing, user, argument):
    seen = getattr(thing, "seen", 0)
    thing.seen = seen + 1
    return float(seen > 0)


def class_attribute(thing, user, argument):
    cls = type(thing)
    seen = getattr(cls, "seen_by_class", 0)
    cls.seen_by_class = seen + 1
    return float(seen > 0)


def library_state(thing, user, argument):
    seen = hasattr(json, "seen")
    json.seen = True
    return float(seen)


def write_file(thing, user, argument):
    return allowed(lambda: open(os.path.join(argument, "note"), "w").write(user.texts[0]))


def make_pipe_file(thing, user, argument):
    return allowed(lambda: os.mkfifo(os.path.join(argument, "note")))


def make_folder(thing, user, argument):
    return allowed(lambda: os.mkdir(os.path.join(argument, "note")))


def early_pipe(thing, user, argument):
    return allowed(lambda: os.write(EARLY[1], user.texts[0].encode()))


def read_file(thing, user, argument):
    return allowed(lambda: open(argument, "rb").read())


def read_descriptor(thing, user, argument):
    return allowed(lambda: os.close(os.open(argument, os.O_RDONLY)))


def dots(thing, user, argument):
    return allowed(lambda: open(os.path.dirname(os.__file__) + "/../../../../../../../.." + argument, "rb").read())


def size_of_file(thing, user, argument):
    return allowed(lambda: os.stat(argument)) + allowed(lambda: os.lstat(argument)) + float(os.path.exists(argument))


def list_folder(thing, user, argument):
    return allowed(lambda: os.listdir(argument)) + allowed(lambda: list(os.scandir(argument)))


def proc(thing, user, argument):
    names = ["/proc/self/maps", f"/proc/{os.getppid()}/mem", f"/proc/{os.getppid()}/environ", "/proc/1/cmdline"]
    return sum(allowed(lambda name=name: open(name, "rb").close()) for name in names)


def environment(thing, user, argument):
    return float(argument in "".join(os.environ.values()) or "HOME" in os.environ)


def network(thing, user, argument):
    return allowed(socket.socket) + allowed(lambda: socket.getaddrinfo("localhost", 80)) + allowed(socket.socketpair)


def program(thing, user, argument):
    found = allowed(lambda: subprocess.run(["/bin/true"], check=False)) + allowed(lambda: os.system("true"))
    found += allowed(lambda: os.posix_spawn("/bin/true", ["true"], {}))
    import _posixsubprocess

    found += allowed(_posixsubprocess.fork_exec)
    return found + allowed(lambda: os.execv("/bin/false", ["false"]))


def fork(thing, user, argument):
    def attempt():
        if os.fork() == 0:
            os._exit(0)

    return allowed(attempt)


def native(thing, user, argument):
    def attempt():
        import ctypes

        ctypes.CDLL(None)

    return allowed(attempt)


def shared(thing, user, argument):
    def attempt():
        import mmap

        mmap.mmap(-1, 4096)

    def semaphore():
        import _multiprocessing  # noqa: F401

    return allowed(attempt) + allowed(semaphore)


def again(thing, user, argument):
    def attempt():
        del sys.modules["posix"]
        import posix

        posix.mkfifo(os.path.join(argument, "note"))

    return allowed(attempt)


def signals(thing, user, argument):
    return allowed(lambda: os.kill(os.getppid(), 0)) + allowed(lambda: os.killpg(0, 0))


def priority(thing, user, argument):
    return allowed(lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 1)) + allowed(
        lambda: os.sched_setaffinity(os.getppid(), {0})
    )


def other_descriptors(thing, user, argument):
    found = 0
    for number in range(3, 200):
        try:
            os.fstat(number)
            found += 1
        except OSError:
            pass
    return float(found > 1)  # its own answer's


def objects(thing, user, argument):
    return allowed(gc.get_objects) + allowed(lambda: gc.get_referrers(user))


def stop_the_clock(thing, user, argument):
    return allowed(lambda: signal.setitimer(signal.ITIMER_REAL, 0)) + allowed(
        lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN)
    )


ATTACKS = {
    f.__name__: f
    for f in (
        counter, attribute, class_attribute, library_state, write_file, make_pipe_file, make_folder, early_pipe,
        read_file, read_descriptor, dots, size_of_file, list_folder, proc, environment, network, program, fork,
        native, shared, again, signals, priority, other_descriptors, objects, stop_the_clock,
    )
}  # fmt: skip


class Attack(Statistic):
    """One of the attacks."""

    def __init__(self, how, argument=""):
        self.how, self.argument = how, argument

    def value(self, user):
        return ATTACKS[self.how](self, user, self.argument)


# --- attacks on the console, on time, and on what an answer may be -----------------------------------------


class Loud(Statistic):
    def value(self, user):
        print("printed", user.texts)
        os.write(1, user.texts[0].encode())
        os.write(2, user.texts[0].encode())
        warnings.warn(f"warned {user.texts}", stacklevel=1)
        logging.getLogger("loud").error("logged %s", user.texts)
        return 1.0


class Late(Statistic):
    """Imports a library when it is first asked."""

    def __init__(self, name):
        self.name = name

    def value(self, user):
        importlib.import_module(self.name)
        return 1.0


class Failing(Statistic):
    """Does what no statistic should, for users whose text says so."""

    def __init__(self, how):
        self.how = how

    def value(self, user):
        if user.texts and SECRET in user.texts[0]:
            return MISDEEDS[self.how](user)
        return 1.0


class AlwaysFailing(Statistic):
    def value(self, user):
        raise ValueError(str(user.texts))


def raising(user):
    raise ValueError(f"can't make anything of {user.texts}")


def endless(user):
    while True:
        time.sleep(1)


class Sly(float):
    def __float__(self):
        return 1e9


MISDEEDS = {
    "raises": raising,
    "exits": lambda user: sys.exit(user.texts[0]),
    "ends": lambda user: os._exit(0),
    "kills itself": lambda user: os.abort(),
    "sleeps": endless,
    "huge": lambda user: 1e300,
    "huge integer": lambda user: 10**5000,
    "nan": lambda user: float("nan"),
    "infinite": lambda user: float("inf"),
    "text": lambda user: user.texts[0],
    "list": lambda user: [1e9] * 1000,
    "deep": lambda user: [[[1e9]]],
    "none": lambda user: None,
    "object": lambda user: object(),
    "dictionary": lambda user: {"a": 1e9},
    "sly": lambda user: Sly(1e9),
    "large": lambda user: ["x" * 2**20] * 40,
    "forged": lambda user: _forge(),
}


def _forge():
    """Writes an answer of its own on every descriptor, and then a second one."""
    for number in range(3, 50):
        try:
            for _ in range(2):
                os.write(number, (20).to_bytes(8, "big") + b'{"answer": 1e9     }')
        except OSError:
            pass
    os._exit(0)


# --- own-records plugins ------------------------------------------------------------------------------------


class RuleParameters(PluginParameters):
    how: str = "shown"


class Rule(OwnRecordsSegmenter):
    """An own-records rule that misbehaves as its parameter says."""

    Parameters = RuleParameters
    parameters: RuleParameters
    segments = ("first", "later")
    seen: ClassVar[list[object]] = []

    def assign(self, user):
        how = self.parameters.how
        if how == "shown":
            return json.dumps([type(user).__name__, user.texts, user.token_counts, user.examples])
        if how == "state":
            Rule.seen.append(user.texts)
            SEEN.append(user.texts)
            return "first" if len(Rule.seen) == 1 == len(SEEN) else "later"
        found = {"names": lambda: user.texts[0], "number": lambda: 0, "list": lambda: [user.texts]}
        found |= {"raises": lambda: {}[user.texts], "exits": lambda: sys.exit(user.texts[0])}
        return found[how]()


class Mixed(MixedSegmenter):
    """Looks at a public column, and that there is no other."""

    segments = ("free", "paid", "wrong")
    columns = ("plan",)

    def assign(self, user):
        plan = user.attributes["plan"] if list(user.attributes) == ["plan"] and user.texts else "wrong"
        return plan if plan in self.segments else "wrong"


class Attributes(OwnRecordsSegmenter):
    """Looks whether it is handed public columns."""

    segments = ("none", "some")

    def assign(self, user):
        return "some" if user.attributes else "none"


class Score(OwnRecordsScore):
    """The same for a score."""

    Parameters = RuleParameters
    parameters: RuleParameters

    def score(self, user):
        how = self.parameters.how
        if how == "state":
            SEEN.append(user.texts)
            return 0.0 if len(SEEN) == 1 else 1.0
        return {"raises": lambda: {}[user.texts], "nan": lambda: float("nan"), "inf": lambda: float("inf"),
                "above": lambda: 1.0001, "below": lambda: -0.1, "true": lambda: True,
                "text": lambda: user.texts[0]}[how]()  # fmt: skip


# --- segmenters that ask a session --------------------------------------------------------------------------


class LearnerParameters(PluginParameters):
    how: str = "median"
    argument: str = ""
    noise: float = 1.0


class Learner(SessionSegmenter):
    """Splits users at the noisy median of their tokens; or attacks from within `fit`."""

    Parameters = LearnerParameters
    parameters: LearnerParameters
    segments = ("little", "much")

    @property
    def queries(self):
        edges = tuple(float(2**i) for i in range(12))
        noise = self.parameters.noise
        return (Query("median", "quantile", noise, quantile=0.5, edges=edges), Query("users", "count", noise))

    def fit(self, session):
        return FITS[self.parameters.how](self, session, self.parameters.argument)


def refused(attempt):
    try:
        attempt()
    except PluginError:
        return 0.0
    return 1.0


class Exact(Statistic):
    """Would run code where it is unpickled."""

    def __init__(self, path=""):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)

    def value(self, user):
        return 1.0


def _answer_fields(session):
    answer = session.ask("users", One())
    return json.dumps({"type": type(answer).__name__, "fields": {k: repr(v) for k, v in vars(answer).items()}})


class Local(TokenRule):
    def __init__(self, thing):
        super().__init__(0.0)
        self.thing = thing


def _pickled(learner, session, argument):
    session.ask("users", Exact(argument))
    return TokenRule(0.0)


def _anonymous(learner, session, argument):
    class Hidden(Statistic):
        def value(self, user):
            return 1.0

    return TokenRule(refused(lambda: session.ask("users", Hidden())))


def _module_of_another(learner, session, argument):
    session._ask({"ask": "users", "path": "os:system", "attributes": {"command": "true"}})
    return TokenRule(0.0)


def _nonsense(learner, session, argument):
    for question in (
        {"ask": "users", "path": "a b", "attributes": {}},
        {"ask": "users", "path": ["os"], "attributes": []},
        {"ask": ["users"], "path": "tests.data.rules:One", "attributes": {}},
        {"ask": "users"},
    ):
        if "refused" not in session._ask(question):
            return TokenRule(1.0)
    return TokenRule(0.0)


def _look_around(learner, session, argument):
    found, frame = 0.0, sys._getframe()
    while frame is not None:
        found += any(type(v).__name__ in ("Corpus", "DeclaredSession", "Randomness") for v in frame.f_locals.values())
        frame = frame.f_back
    found += any(name in sys.modules for name in ("harness.data.store", "harness.privacy.session", "pyarrow"))
    return TokenRule(found + allowed(gc.get_objects))


FITS = {
    "median": lambda self, session, argument: TokenRule(session.ask("median", Tokens()).value),
    "rounds": lambda self, session, argument: TokenRule(
        session.ask("users", One(str(session.ask("median", Tokens()).value))).value
    ),
    "undeclared": lambda self, session, argument: TokenRule(refused(lambda: session.ask("sum", Tokens()))),
    "another": lambda self, session, argument: TokenRule(
        [session.ask("users", One()), refused(lambda: session.ask("users", One("other")))][1]
    ),
    "same again": lambda self, session, argument: TokenRule(
        float(session.ask("users", One()) != session.ask("users", One()))
    ),
    "answer": lambda self, session, argument: Local(_answer_fields(session)),
    "keeps session": lambda self, session, argument: Local(session),
    "keeps code": lambda self, session, argument: Local(lambda user: SECRET),
    "no rule": lambda self, session, argument: "rule",
    "raises": lambda self, session, argument: [][len(SECRET)],
    "prints": lambda self, session, argument: print(SECRET) or TokenRule(0.0),
    "sleeps": lambda self, session, argument: endless(None),
    "ends": lambda self, session, argument: os._exit(0),
    "kills": lambda self, session, argument: TokenRule(allowed(lambda: os.kill(int(argument), signal.SIGKILL))),
    "pickled": _pickled,
    "anonymous": _anonymous,
    "foreign": _module_of_another,
    "nonsense": _nonsense,
    "looks": _look_around,
    "reads": lambda self, session, argument: TokenRule(read_file(self, None, argument)),
    "environment": lambda self, session, argument: TokenRule(environment(self, None, argument)),
    "network": lambda self, session, argument: TokenRule(network(self, None, argument)),
    "program": lambda self, session, argument: TokenRule(program(self, None, argument)),
    "writes": lambda self, session, argument: TokenRule(allowed(lambda: os.open(argument, os.O_CREAT | os.O_WRONLY))),
    "forks": lambda self, session, argument: TokenRule(fork(self, None, argument)),
    "failing": lambda self, session, argument: TokenRule(session.ask("users", AlwaysFailing()).value),
    "loud": lambda self, session, argument: TokenRule(session.ask("users", Loud()).value),
}


# --- who uses the base model's view -------------------------------------------------------------------------


class Seen(OwnRecordsScore):
    """A number that every part of the view has a part in; 0 without one."""

    uses_model = True

    def score(self, user):
        if user.model is None:
            return 0.0
        view = user.model
        parts = (*view.losses, *view.tails, *view.guessed, view.gradient_norm, *view.embedding)
        return abs(sum(x * (i + 1) for i, x in enumerate(parts))) / 200


class SeenRule(OwnRecordsSegmenter):
    uses_model = True
    segments = ("known", "new")

    def __init__(self, parameters, edge=3.0):
        super().__init__(parameters)
        self.edge = edge

    def assign(self, user):
        return self.segments[user.model.losses[0] > self.edge]


class SeenLoss(Statistic):
    def value(self, user):
        return user.model.losses[0] if user.model.losses else 0.0


class SeenLearner(SessionSegmenter):
    uses_model = True
    segments = ("known", "new")
    queries = (Query("losses", "sum", 1e-6, low=0.0, high=10.0),)

    def fit(self, session):
        return SeenRule(self.parameters, float(session.ask("losses", SeenLoss()).value))


class Unsure(OwnRecordsScore):
    @property
    def uses_model(self):
        return 1 / 0

    def score(self, user):
        return 0.0
