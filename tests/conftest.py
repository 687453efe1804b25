"""What holds for every test: no network, no telemetry, a cache of its own, and no skip where all is required."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.clusters import Nodes, RayHead
    from tests.launching import Run
    from tests.privacy.ledger.databases import Server
    from tests.s3 import Store

# Before any test module imports the libraries that read these.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)

# A shell that starts us in the background has Ctrl-C ignored, and every process of ours would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_ALL = os.environ.get("UUDP_REQUIRE_ALL") == "1"

# Where all is required, a commit passes or fails by what it is and not by its draw; elsewhere every run looks further.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=REQUIRE_ALL, print_blob=True)
hypothesis.settings.load_profile("ours")
_OWN_CACHE = "UUDP_CACHE" not in os.environ
if _OWN_CACHE:
    os.environ["UUDP_CACHE"] = tempfile.mkdtemp(prefix="uudp-tests-")
# Never the ledger of whoever runs the tests.
_LEDGER_FOLDER = tempfile.mkdtemp(prefix="uudp-tests-ledger-")
os.environ["UUDP_LEDGER"] = f"sqlite:///{_LEDGER_FOLDER}/ledger.db"


def require(condition: object, reason: str) -> None:
    """Skips the running test unless `condition` holds; with UUDP_REQUIRE_ALL=1 the test fails instead.

    Args:
        condition: What the test needs; only its truth matters.
        reason: What is missing, in words.
    """
    if condition:
        return
    if REQUIRE_ALL:
        pytest.fail(f"UUDP_REQUIRE_ALL=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns every skip into a failure where nothing may be skipped."""
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and UUDP_REQUIRE_ALL=1 allows no skip: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if REQUIRE_ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, and UUDP_REQUIRE_ALL=1 allows no skip: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _remove_own_cache() -> Iterator[None]:
    """The session's cache goes when the session ends, unless it was given; its ledger goes too."""
    yield
    shutil.rmtree(_LEDGER_FOLDER, ignore_errors=True)
    if _OWN_CACHE:
        shutil.rmtree(os.environ["UUDP_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The system's Chromium, for Playwright's ``executable_path``."""
    names = (os.environ.get("UUDP_CHROMIUM", "chromium"), "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    require(found, "Chromium was not found")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished ``uudp run --json`` on public text, two workers, ZeRO 3; tests only look at it."""
    from tests import launching

    place = launching.whole_run(tmp_path_factory.mktemp("whole"))
    try:
        yield launching.ended(place, place.start_run("--json"))
    finally:
        place.clean()


@pytest.fixture(scope="session")
def secret_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished, undisturbed ``uudp run`` on private text with the key `launching.KEY`; tests only look at it."""
    from tests import launching

    place = launching.secret_run(tmp_path_factory.mktemp("secret"))
    try:
        process = place.start_with_key(launching.KEY)
        process.worker()
        place.watched = launching.seen_from_outside(process)
        yield launching.ended(place, process)
    finally:
        place.clean()


@pytest.fixture(scope="session")
def unprotected_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished ``uudp run --not-private``, without noise; tests only look at it."""
    from tests import launching

    place = launching.Workplace(
        tmp_path_factory.mktemp("unprotected"), name="open", noise={"type": "none"}, report={"html": True}
    )
    try:
        yield launching.ended(place, place.start_run("--not-private"))
    finally:
        place.clean()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server of this session's own."""
    from tests.privacy.ledger.databases import Server

    server = Server()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An object store, and keys for it in the environment."""
    from tests.s3 import store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("harness.places.SECONDS", (5.0, 5.0))
    with store() as found:
        yield found


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    """A Ray cluster of its own, with a token."""
    from tests.clusters import RayHead

    found = RayHead(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A Ray cluster whose nodes come and go."""
    from tests.clusters import Nodes

    folder = Path(tempfile.mkdtemp(prefix="uudp-nodes-"))  # sockets have short paths at most
    cluster = Nodes(folder / "ray")
    try:
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
