"""Rooms: what a hostile plugin tries there, and that it sees no more than one user's records, or than noisy answers."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.data import landlock, portable
from harness.data.rooms import Reply, UserRoom, ask_all, run_fit
from harness.errors import ArgumentError
from harness.plugins import PluginError, UserRecords
from harness.privacy.randomness import Randomness
from harness.privacy.session import DeclaredSession
from harness.queries import Described
from tests.conftest import require
from tests.data import rules
from tests.data.rules import SECRET

ANN = UserRecords((SECRET, "more of it"), (5, 3), 1)
BOB = UserRecords(("nothing",), (1,), 1)
MARK = "mark-in-the-environment"


def room(statistic, folder, task="value", **options):
    return UserRoom(portable.describe(statistic), task, who="them", private_dir=folder / "private", **options)


def log(folder: Path) -> str:
    path = folder / "private" / "plugin-errors.log"
    return path.read_text() if path.exists() else ""


def test_a_user_room_says_what_the_plugin_says(tmp_path):
    """Red when the records arrive changed, or the users' answers in another order."""
    with room(rules.Tokens(), tmp_path) as them:
        assert [them.ask(user) for user in (ANN, BOB, ANN)] == [Reply(8.0, False), Reply(1.0, False), Reply(8.0, False)]
    assert not (tmp_path / "private").exists()


def test_a_text_of_any_size_arrives(tmp_path):
    """Red when a message is cut, or sent while nobody reads."""
    long = UserRecords(("x" * 3_000_000, "\ud800 lone"), (7, 1), 1)
    with room(rules.Tokens(), tmp_path) as them:
        assert them.ask(long) == Reply(8.0, False)


def test_several_rooms_keep_the_order_of_users_and_are_closed(tmp_path, monkeypatch):
    """Red when answers come as they are ready, or a room outlives the questions."""
    made = []

    def make():
        made.append(room(rules.Tokens(), tmp_path))
        return made[-1]

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    users = [UserRecords(("x" * (5000 * (n % 5)),), (n,), 1) for n in range(30)]
    assert [reply.answer for reply in ask_all(make, iter(users))] == [float(n) for n in range(30)]
    assert len(made) == 3
    some = ask_all(make, iter(users))
    assert next(some) == Reply(0.0, False)
    some.close()
    assert all(one._room is None for one in made)


@pytest.mark.parametrize("how", rules.ATTACKS)
def test_no_attack_sees_more_than_one_user(how, tmp_path, monkeypatch):
    """Three users, and no attack succeeds for any of them.

    Each was seen red without its guard: counter, attribute, class_attribute, library_state without the fork in
    `within._serve_users`; early_pipe and other_descriptors without `close_all_but`; make_pipe_file, priority and
    stop_the_clock without `walls._TAKEN`; size_of_file without `walls._LOOKS`; `again` without `walls._MODULES`; dots
    without the check of ``/../``; environment when the environment is inherited; fork without `Walls.seal`; all others
    without the audit hook (and without Landlock, where the kernel has it).
    """
    monkeypatch.setenv("UUDP_MARK", MARK)
    data = tmp_path / "data"
    data.mkdir()
    (data / "posts.py").write_text(SECRET)
    given = {
        "environment": MARK,
        "read_file": str(data / "posts.py"),
        "read_descriptor": str(data / "posts.py"),
        "dots": str(data / "posts.py"),
        "size_of_file": str(data / "posts.py"),
    }
    attack = rules.Attack(how, given.get(how, str(data)))
    with room(attack, tmp_path) as them:
        assert [them.ask(user) for user in (ANN, BOB, ANN)] == [Reply(0.0, False)] * 3, log(tmp_path)
    assert sorted(p.name for p in data.iterdir()) == ["posts.py"]


def test_a_refused_folder_is_refused_even_among_libraries(tmp_path):
    """Red when `refused` is not passed on."""
    library = os.path.dirname(json.__file__)
    attack = rules.Attack("read_file", os.path.join(library, "tool.py"))
    with room(attack, tmp_path) as them:
        assert them.ask(ANN) == Reply(1.0, False)  # reading there is what imports do
    with room(attack, tmp_path, refused=(Path(library),)) as them:
        assert them.ask(ANN) == Reply(0.0, False)


def test_what_is_printed_warned_or_logged_goes_to_the_private_log(tmp_path, capfd):
    """Red when the room inherits our descriptors, or its log is passed to the console."""
    with room(rules.Loud(), tmp_path) as them:
        assert them.ask(ANN) == Reply(1.0, False)
    assert capfd.readouterr() == ("", "")
    for word in ("printed", "warned", "logged"):
        assert f"{word} " in log(tmp_path)
    assert stat.S_IMODE((tmp_path / "private" / "plugin-errors.log").stat().st_mode) == 0o600


@pytest.mark.parametrize("how", ["raises", "exits", "ends", "kills itself", "sleeps", "large", "forged"])
def test_whoever_fails_on_one_user_is_asked_about_the_next(how, tmp_path, capfd):
    """Red when a failure ends the room, when the clock is not started, or when an answer may be of any length."""
    with room(rules.Failing(how), tmp_path, seconds=1) as them:
        them.ask(BOB)
        process = them._room.process
        assert [them.ask(user).answer for user in (BOB, ANN, BOB)] == [1.0, None if how != "forged" else 1e9, 1.0]
        assert them._room.process is process
    assert capfd.readouterr() == ("", "")
    if how in ("raises", "exits"):
        assert SECRET in log(tmp_path)


def test_a_class_of_another_kind_is_not_used(tmp_path):
    """Red when the room calls whatever class it is told."""
    for path in ("os:system", "tests.data.rules:TokenRule", "tests.data.rules:nothing"):
        with (
            pytest.raises(ArgumentError, match="the plugin them can't be imported") as caught,
            UserRoom(Described(path, "{}", ""), "value", who="them", private_dir=None) as them,
        ):
            them.ask(ANN)
        assert SECRET not in str(caught.value)


def test_what_travels_is_data():
    """Red when an object of any kind is taken as an attribute."""
    import numpy as np

    for value in (None, True, 3, -0.5, float("inf"), "x", [1, (2, 3)], {"a": [None]}, np.arange(6).reshape(2, 3)):
        there = portable.decode(json.loads(json.dumps(portable.encode(value))))
        assert repr(there) == repr(value)
    for value in (object(), len, b"x", {1: 2}, {"__is__": "array"}, np.array([None]), np.array(["a"]), {"a": {1}}):
        with pytest.raises(PluginError):
            portable.encode(value)


OUTSIDE = """
import os, _socket, sys
from harness.data import landlock
assert landlock.restrict([sys.argv[1]]) is True
open(sys.argv[1] + "/a").close()
for attempt in (
    lambda: open(sys.argv[2]),
    lambda: open(sys.argv[1] + "/a", "w"),
    lambda: os.mkdir(sys.argv[1] + "/b"),
    lambda: os.listdir("/tmp"),
    lambda: os.kill(os.getppid(), 0),
    lambda: _socket.socket().connect(("127.0.0.1", int(sys.argv[3]))),
):
    try:
        attempt()
    except PermissionError:
        print("refused")
"""


def test_the_kernel_refuses_what_a_hook_would_not_see(tmp_path):
    """No hook is up here. Red when `restrict` returns before its last line, or one of the rights is left out."""
    require(landlock.version() >= 6, "the kernel's Landlock is older than its version 6")
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "in" / "a", tmp_path / "out"):
        path.write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [str(tmp_path / "in"), str(tmp_path / "out"), str(server.getsockname()[1])]
        done = subprocess.run([sys.executable, "-c", OUTSIDE, *words], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["refused"] * 6, "")


def test_a_room_is_behind_the_kernels_wall(tmp_path):
    """Red when `Walls.raise_` leaves it out."""
    require(landlock.version() > 0, "the kernel has no Landlock")
    with room(rules.Tokens(), tmp_path) as them:
        them.ask(ANN)
        status = Path(f"/proc/{them._room.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status


@pytest.mark.parametrize("name", ["numpy", "scipy.stats", "json.tool", "zoneinfo"])
def test_libraries_can_be_imported_late(name, tmp_path):
    """Red when the walls leave no library to be read, or take away what they import."""
    with room(rules.Late(name), tmp_path) as them:
        assert them.ask(ANN) == Reply(1.0, False), log(tmp_path)


# --- the fitting room ---------------------------------------------------------------------------------------


class Users:
    fingerprint = "data"

    def __init__(self):
        self.asked = []

    def values(self, statistic):
        self.asked.append(statistic)
        return [8.0] * 37


def fit(how, folder, argument="", seconds=60.0, noise=1.0):
    learner = rules.Learner(rules.LearnerParameters(how=how, argument=argument, noise=noise))
    users = Users()
    session = DeclaredSession(learner.queries, users, Randomness(bytes(32)), folder / "private" / "session.json")
    rule = run_fit(
        portable.describe_plugin(learner), session, who="them", private_dir=folder / "private", seconds=seconds
    )
    with pytest.raises(PluginError, match="closed"):
        session.answer("users", users.asked[0] if users.asked else Described("a:b", "{}", ""))
    return rule, users, session


def edge(rule):
    assert rule.path == "tests.data.rules:TokenRule"
    return json.loads(rule.attributes)["edge"]


def test_fit_learns_a_rule_from_noisy_answers(tmp_path):
    """And the session is closed behind it. Red when `close` is left out of `run_fit`."""
    rule, users, _ = fit("median", tmp_path, noise=0.001)
    assert 8.0 <= edge(rule) <= 16.0
    assert [one.path for one in users.asked] == ["tests.data.rules:Tokens"]
    rule, users, _ = fit("rounds", tmp_path / "other", noise=0.001)
    assert edge(rule) == pytest.approx(37, abs=0.1)
    label = json.loads(users.asked[1].attributes)["label"]  # a later statistic holds an answer
    assert float(label) == pytest.approx(12, abs=0.1)


@pytest.mark.parametrize(
    "how",
    ["undeclared", "another", "same again", "anonymous", "nonsense", "looks", "environment", "network", "program",
     "forks"],
)  # fmt: skip
def test_fit_gets_nothing_but_declared_answers(how, tmp_path, monkeypatch):
    """Red when the session answers undeclared queries, or one query for two statistics (undeclared, another); when the
    room inherits memory (looks) or the environment; without the audit hook (looks, network, program, forks).
    """
    monkeypatch.setenv("UUDP_MARK", MARK)
    rule, _, _ = fit(how, tmp_path, argument=MARK)
    assert edge(rule) == 0.0


def test_fit_reads_and_writes_no_file(tmp_path):
    """Red without the audit hook."""
    data = tmp_path / "posts.jsonl"
    data.write_text(SECRET)
    assert edge(fit("reads", tmp_path, argument=str(data))[0]) == 0.0
    assert edge(fit("writes", tmp_path / "two", argument=str(tmp_path / "new"))[0]) == 0.0
    assert not (tmp_path / "new").exists()


def test_an_answer_holds_nothing_exact(tmp_path):
    """Red when the exact sum is put into an attribute of the answer."""
    rule, _, _ = fit("answer", tmp_path, noise=1.0)
    found = json.loads(json.loads(rule.attributes)["thing"])
    assert found["type"] == "Answer"
    assert set(found["fields"]) == {"query", "value", "std", "noisy"}
    numbers = [float(found["fields"]["value"]), *map(float, found["fields"]["noisy"].strip("(),").split(","))]
    assert numbers[0] == numbers[1] != 37.0
    assert float(found["fields"]["std"]) == 1.0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("keeps session", "raised an error; see private/plugin-errors.log"),
        ("keeps code", "raised an error; see private/plugin-errors.log"),
        ("no rule", "raised an error; see private/plugin-errors.log"),
        ("raises", "raised an error; see private/plugin-errors.log"),
        ("ends", "ended, or took more than 3 seconds, without giving a rule"),
        ("sleeps", "ended, or took more than 3 seconds, without giving a rule"),
    ],
)
def test_a_fit_that_fails_is_one_line(how, message, tmp_path, capfd):
    """Red when an attribute of any kind travels (keeps session, keeps code), or the clock is not looked at."""
    with pytest.raises(ArgumentError) as caught:
        fit(how, tmp_path, seconds=3.0)
    assert str(caught.value) == f"the plugin them {message}"
    assert (caught.value.__cause__, caught.value.__suppress_context__ or caught.value.__context__) in (
        (None, None),
        (None, True),
    )
    assert capfd.readouterr() == ("", "")


def test_nothing_that_fit_sends_runs_here(tmp_path):
    """A pickle would make the folder. Red when statistics come as pickles."""
    rule, users, _ = fit("pickled", tmp_path, argument=str(tmp_path / "made"))
    assert edge(rule) == 0.0
    assert users.asked[0].path == "tests.data.rules:Exact"
    assert not (tmp_path / "made").exists()


def test_a_plugin_can_not_end_us(tmp_path):
    """Red without the audit hook: this very process is gone."""
    assert edge(fit("kills", tmp_path, argument=str(os.getpid()))[0]) == 0.0


def test_what_fit_prints_goes_to_the_private_log(tmp_path, capfd):
    """Red when the log is left out of what the room sends, or printed."""
    fit("prints", tmp_path)
    assert SECRET in log(tmp_path)
    assert capfd.readouterr() == ("", "")


SLEEPING = """
import sys
from pathlib import Path
from tests.data.test_rooms import fit
fit("sleeps", Path(sys.argv[1]), seconds=600.0)
"""


def test_a_room_ends_with_the_harness(tmp_path):
    """Red when the fitting room is not told to die with its parent: it would sleep for ever."""
    import psutil

    with subprocess.Popen([sys.executable, "-c", SLEEPING, str(tmp_path)]) as process:
        until = time.monotonic() + 60
        found = []
        while time.monotonic() < until and not found:
            time.sleep(0.2)
            found = [p for p in psutil.Process(process.pid).children() if p.num_fds() == 4]
        time.sleep(3)  # it has gone to sleep
        process.kill()
    assert found
    assert psutil.wait_procs(found, timeout=20)[1] == []
