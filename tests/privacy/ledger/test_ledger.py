"""What runs may reserve, touch and get back, on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ArgumentError, BudgetError, MachineError
from harness.privacy.ledger import Budget, Ledger, Overspent, Receipt, Request
from harness.privacy.ledger.amounts import add, capacity_of, converted, exact, rounded, text_of

Asking = Callable[..., Request]


def no_rdp(order: float) -> float:
    raise AssertionError("this budget has no order")


def status(ledger: Ledger, run: str) -> str:
    return next(r.status for r in ledger.account("posts").runs if r.reservation.run == run)


def test_ten_times_a_tenth_fits(ledger: Ledger, asking: Asking) -> None:
    """ε adds exactly; no more than the budget is admitted. Red when amounts add as floats, or `<` for `<=`."""
    ledger.set_budget("posts", 1.0, 1e-5)
    for run in range(10):
        ledger.reserve(asking(f"r{run}", 0.1, 1e-6), no_rdp)
    with pytest.raises(Overspent, match=r'ε = 0 and δ = 0 are left of the budget of "posts"') as refused:
        ledger.reserve(asking("r10", 1e-9, 1e-12), no_rdp)
    assert refused.value.exit_code == 3
    account = ledger.account("posts")
    assert (account.spent_epsilon, account.spent_delta) == (1, Fraction(1, 10**5))
    assert ledger.verify() == (11, [])


def test_delta_adds_too(ledger: Ledger, asking: Asking) -> None:
    """Red when only ε is compared."""
    ledger.set_budget("posts", 100.0, 1e-6)
    ledger.reserve(asking("a", 1.0, 6e-7), no_rdp)
    with pytest.raises(Overspent, match=r"δ = 4e-07 are left .* needs ε = 1 and δ = 6e-07"):
        ledger.reserve(asking("b", 1.0, 6e-7), no_rdp)
    ledger.reserve(asking("c", 1.0, 4e-7), no_rdp)


def test_data_sets_do_not_share(ledger: Ledger, asking: Asking) -> None:
    ledger.set_budget("posts", 1.0, 1e-5)
    ledger.reserve(asking("a", 1.0), no_rdp)
    ledger.reserve(asking("b", 5.0, data_set="mails"), no_rdp)  # without a budget: recorded without a limit
    mails = ledger.account("mails")
    assert (mails.budget, mails.left(), mails.spent_epsilon) == (None, None, 5)
    assert [a.data_set for a in ledger.accounts()] == ["mails", "posts"]


def test_the_way_of_a_run(ledger: Ledger, asking: Asking) -> None:
    """A run never pays twice, is charged whole once touched, and gets back what it never touched.

    Red when a repeated reserve or touch appends another entry, or when a refund looks at nothing.
    """
    ledger.set_budget("posts", 2.0, 1e-5)
    first, before = ledger.reserve(asking("a"), no_rdp)
    again, _ = ledger.reserve(asking("a"), no_rdp)
    assert (again, before.runs) == (first, ())
    assert ledger.standing("a", first).status == "reserved"
    ledger.touch("a")
    ledger.touch("a")
    assert ledger.verify() == (3, [])
    for call in (ledger.refund, ledger.void):
        with pytest.raises(ArgumentError, match="a is touched: a model has read private data, so all of it stays"):
            call("a")
    assert ledger.reserve(asking("a"), no_rdp)[0] == first  # a resumed run
    ledger.finish("a")
    ledger.finish("a")
    ledger.touch("a")
    assert ledger.verify() == (4, [])
    assert status(ledger, "a") == "finished"

    receipt, _ = ledger.reserve(asking("b"), no_rdp)
    with pytest.raises(BudgetError):
        ledger.reserve(asking("c"), no_rdp)
    ledger.refund("b")
    ledger.refund("b")
    ledger.reserve(asking("c"), no_rdp)
    with pytest.raises(BudgetError, match="was given back before anything private was read"):
        ledger.standing("b", receipt)
    assert status(ledger, "b") == "refunded"


@pytest.mark.parametrize("how", ["refund", "void"])
def test_nothing_goes_on_after_a_refund(ledger: Ledger, asking: Asking, how: str) -> None:
    """Red when `touch` accepts a reservation that was given back: a run that was never charged would train."""
    receipt, _ = ledger.reserve(asking("a"), no_rdp)
    getattr(ledger, how)("a")
    for call in (ledger.touch, lambda run: ledger.reserve(asking(run), no_rdp), ledger.void):
        with pytest.raises(ArgumentError, match=f"was {'refunded' if how == 'refund' else 'voided'}"):
            call("a")
    with pytest.raises(ArgumentError, match="it can't be finished"):
        ledger.finish("a")
    with pytest.raises(BudgetError, match="given back"):
        ledger.standing("a", receipt)
    assert ledger.account("posts").spent_epsilon == 0


def test_one_id_is_one_run(ledger: Ledger, asking: Asking) -> None:
    """Red when a repeated reserve does not compare: a second run of that id would be free."""
    ledger.reserve(asking("a"), no_rdp)
    for other in (
        asking("a", 2.0), asking("a", delta=2e-6), asking("a", data_set="mails"), asking("a", steps=11),
        asking("a", mechanism="e" * 64), asking("a", spec="other"), asking("a", holdout_fraction=0.5),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match="run a reserved something else before"):
            ledger.reserve(other, no_rdp)


def test_unknown_runs(ledger: Ledger, asking: Asking) -> None:
    ledger.reserve(asking("20260101-a"), no_rdp)
    for call in (ledger.touch, ledger.finish, ledger.refund, ledger.void):
        with pytest.raises(ArgumentError, match=r'has no run "20260101-b"; did you mean "20260101-a"\?'):
            call("20260101-b")
    with pytest.raises(ArgumentError, match="does not hold the reservation of run 20260101-a"):
        ledger.standing("20260101-a", Receipt(1, "0" * 64))


def test_runs_without_noise(ledger: Ledger, asking: Asking) -> None:
    """Their ε is infinite: no budget holds it, and a later budget has nothing left. Red when ∞ counts as 0."""
    ledger.set_budget("posts", 1e6, 0.5)
    with pytest.raises(Overspent, match="a run without noise spends an infinite ε"):
        ledger.reserve(asking("a", math.inf, 0.0), no_rdp)
    ledger.reserve(asking("b", math.inf, 0.0, data_set="open"), no_rdp)
    ledger.set_budget("open", 5.0, 1e-5)
    document = ledger.account("open").document()
    assert (document["spent_epsilon"], document["spent_without_privacy"]) == (None, True)
    assert document["remaining_epsilon"] == 0
    with pytest.raises(Overspent):
        ledger.reserve(asking("c", 0.1, data_set="open"), no_rdp)


def test_a_budget_can_be_set_again(ledger: Ledger, asking: Asking) -> None:
    """The latest counts; below what is spent, nothing is left. Red when the first counts, or less than 0 is left."""
    ledger.set_budget("posts", 1.0, 1e-5)
    ledger.reserve(asking("a"), no_rdp)
    ledger.set_budget("posts", 3.0, 1e-5)
    ledger.reserve(asking("b"), no_rdp)
    ledger.set_budget("posts", 0.5, 1e-5)
    left = ledger.account("posts").left()
    assert left is not None
    assert left.epsilon == 0
    assert ledger.account("posts").document()["remaining_epsilon"] == 0
    with pytest.raises(Overspent):
        ledger.reserve(asking("c", 0.1), no_rdp)


def test_public_holdouts_only_grow(ledger: Ledger, asking: Asking) -> None:
    """Whoever was held out publicly once stays so. Red when it is noted at reserve, or the latest fraction counts."""
    for run, fraction, file in (("a", 0.1, False), ("b", 0.3, False), ("c", 0.2, True), ("d", 0.0, False)):
        ledger.reserve(asking(run, holdout_fraction=fraction, holdout_file=file), no_rdp)
    assert ledger.holdout("posts") == (0.0, False)
    found = []
    for run in "abcd":
        ledger.touch(run)
        found.append(ledger.holdout("posts"))
    assert found == [(0.1, False), (0.3, False), (0.3, True), (0.3, True)]
    assert ledger.verify() == (4 + 4 + 3, [])


# --- one fixed Rényi order ----------------------------------------------------------------------------------


def test_rdp_adds_at_the_budgets_order(ledger: Ledger, asking: Asking) -> None:
    """Red when ε adds instead (three runs of ε = 4 would not fit 10), or another order is asked for."""
    budget = Budget.of(10.0, 1e-5, 8.0)
    assert budget.capacity is not None
    ledger.set_budget("posts", 10.0, 1e-5, 8.0)
    asked: list[float] = []

    def rdp_at(order: float) -> float:
        asked.append(order)
        return 0.999 * budget.capacity / 3 if budget.capacity else 0.0

    for run in "abc":
        ledger.reserve(asking(run, 4.0, 1e-5), rdp_at)
    assert asked == [8.0] * 3
    with pytest.raises(Overspent, match=r"at order 8 is left of the budget of \"posts\", and this run needs 2\.92"):
        ledger.reserve(asking("d", 4.0, 1e-5), rdp_at)
    document = ledger.account("posts").document()
    assert document["budget"] == {"epsilon": 10.0, "delta": 1e-5, "order": 8.0}
    assert 0 < document["remaining_rdp"] < 0.01
    assert 0 < document["remaining_epsilon"] < 0.01
    assert ledger.verify() == (4, [])


def test_an_order_needs_every_runs_rdp(ledger: Ledger, asking: Asking) -> None:
    """Red when a run whose RDP is not known counts as nothing."""
    ledger.reserve(asking("a"), no_rdp)
    with pytest.raises(ArgumentError, match="an order can only be given before the first run"):
        ledger.set_budget("posts", 10.0, 1e-5, 8.0)
    ledger.refund("a")
    ledger.set_budget("posts", 10.0, 1e-5, 8.0)
    ledger.reserve(asking("b"), lambda order: 1.0)
    ledger.set_budget("posts", 20.0, 1e-5, 8.0)
    with pytest.raises(ArgumentError, match="before the first run"):
        ledger.set_budget("posts", 20.0, 1e-5, 16.0)
    ledger.set_budget("posts", 20.0, 1e-5)  # its ε and δ are known as well
    assert ledger.account("posts").spent_epsilon == 1


@settings(deadline=None, derandomize=True)
@given(st.floats(0.1, 50), st.floats(1e-12, 0.1), st.floats(1.1, 1024))
def test_the_capacity_is_what_converts_to_the_budget(epsilon: float, delta: float, order: float) -> None:
    """Against dp-accounting's own conversion: never more than ε, and tight. Red when the sign of log δ is wrong."""
    capacity = capacity_of(epsilon, delta, order)
    if capacity <= 0:
        assert converted(1e-9, delta, order) > epsilon * (1 - 1e-6)
        return
    theirs, _ = rdp_privacy_accountant.compute_epsilon([order], [capacity], delta)
    assert theirs <= epsilon
    assert converted(capacity, delta, order) == pytest.approx(epsilon, rel=1e-9)
    assert converted(capacity * 1.001 + 1e-6, delta, order) > epsilon


# --- amounts and budgets ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_amounts_add_exactly_and_are_shown_against_us(amounts: list[float]) -> None:
    """Red when a sum is made of floats, or rounded to the nearest."""
    total = add([exact(text_of(a)) for a in amounts])
    assert total == sum(Fraction(repr(a)) for a in amounts)
    assert Fraction(repr(rounded(total, up=False))) <= total <= Fraction(repr(rounded(total, up=True)))
    assert add([total, math.inf]) == math.inf


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.0, 1e-5), "--epsilon: must be above 0"),
        ((-1.0, 1e-5), "--epsilon: must be above 0"),
        ((math.nan, 1e-5), "--epsilon: must be above 0"),
        ((math.inf, 1e-5), "--epsilon: must be above 0"),
        ((1.0, 0.0), "--delta: must be above 0 and below 1"),
        ((1.0, 1.0), "--delta: must be above 0 and below 1"),
        ((1.0, math.nan), "--delta: must be above 0 and below 1"),
        ((1.0, 1e-5, 1.0), "--order: must be from 1.1 to 1024"),
        ((1.0, 1e-5, math.nan), "--order: must be from 1.1 to 1024"),
        ((0.5, 1e-9, 2.0), "--order: at order 2, ε = 0.5 and δ = 1e-09 leave no room for any run"),
    ],
)
def test_budgets_that_are_none(numbers: tuple[float, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as refused:
        Ledger(f"sqlite:///{tmp_path}/l.db").set_budget("posts", *numbers)
    assert str(refused.value).startswith(said)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\ud800", "n" * 201])
def test_names_that_no_data_set_has(ledger: Ledger, asking: Asking, name: str) -> None:
    with pytest.raises(ArgumentError, match="a data set's name has from 1 to 200 characters"):
        ledger.set_budget(name, 1.0, 1e-5)
    with pytest.raises(ArgumentError, match="a data set's name"):
        ledger.reserve(asking("a", data_set=name), no_rdp)


def test_names_of_all_the_world(ledger: Ledger, asking: Asking) -> None:
    for name in ("o'brien; DROP TABLE ledger_entries", "données 数据 %s :x", '"quoted"'):
        ledger.set_budget(name, 1.0, 1e-5)
        ledger.reserve(asking(f"run-{name}", data_set=name), no_rdp)
        assert ledger.account(name).spent_epsilon == 1
    assert ledger.verify() == (6, [])


# --- where it lies ------------------------------------------------------------------------------------------


def test_looking_makes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/books/ledger.db")
    assert ledger.account("posts").runs == ()
    assert ledger.accounts() == []
    assert ledger.verify() == (0, [])
    assert ledger.holdout("posts") == (0.0, False)
    assert not any(tmp_path.iterdir())
    for call in (ledger.touch, ledger.finish, ledger.refund, ledger.void):
        with pytest.raises(MachineError, match=r"can't be opened, or is no longer there"):
            call("a")
    assert not any(tmp_path.iterdir())


def test_the_default_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asking: Asking) -> None:
    """Red when the file is left to the umask."""
    monkeypatch.delenv("UUDP_LEDGER")
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    try:
        for given in (None, "default"):
            ledger = Ledger(given)
            assert ledger.shown == "sqlite:///~/.uudp/ledger.db"
            ledger.reserve(asking("a"), no_rdp)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / ".uudp").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / ".uudp" / "ledger.db").stat().st_mode) == 0o600
    monkeypatch.setenv("UUDP_LEDGER", f"sqlite:///{tmp_path}/other.db")
    assert Ledger().shown == "sqlite:///~/other.db"
    assert Ledger("sqlite:///here.db", base=tmp_path / "specs").shown == "sqlite:///~/specs/here.db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:s3cret@127.0.0.1:1/books", "postgresql://ann:***@127.0.0.1:1/books"),
        ("postgresql+psycopg://127.0.0.1:1/books?password=s3cret", "127.0.0.1:1/books?password="),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    """Red when a message renders the URL as it is."""
    ledger = Ledger(url)
    assert shown in ledger.shown
    with pytest.raises(MachineError, match="does not answer") as refused:
        ledger.account("posts")
    assert refused.value.__cause__ is None
    for text in (ledger.shown, str(refused.value), repr(ledger.address)):
        assert "s3cret" not in text
        assert "\n" not in text


def test_wrong_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("ledger.db", "mysql://ann:s3cret@db/x", "sqlite://", "postgresql://db:s3cret-port/x"):
        with pytest.raises(ArgumentError) as refused:
            Ledger(url)
        assert "s3cret" not in str(refused.value)
    monkeypatch.setenv("UUDP_LEDGER", "nonsense")
    with pytest.raises(ArgumentError, match="UUDP_LEDGER: must be a URL, sqlite:///FILE or postgresql://HOST/DATABASE"):
        Ledger()


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MachineError, match=r'needs the package psycopg: pip install "uudp\[postgres\]"'):
        Ledger("postgresql://db/books")


def test_files_that_are_no_ledger(tmp_path: Path, asking: Asking) -> None:
    text = tmp_path / "text.db"
    text.write_text("this is not a database, but long enough to be looked at" * 50)
    ledger = Ledger(f"sqlite:///{text}")
    for call in (lambda: ledger.account("posts"), lambda: ledger.reserve(asking("a"), no_rdp), ledger.verify):
        with pytest.raises(MachineError, match=r"is damaged, or no SQLite database$"):
            call()
    broken = tmp_path / "broken.db"
    good = Ledger(f"sqlite:///{broken}")
    for run in range(40):
        good.reserve(asking(f"r{run}"), no_rdp)
    content = bytearray(broken.read_bytes())
    content[4096:12288] = os.urandom(8192)
    broken.write_bytes(content)
    with pytest.raises(MachineError, match=r"^the ledger sqlite:///"):
        good.reserve(asking("next"), no_rdp)
    long = Ledger(f"sqlite:///{tmp_path}/{'n' * 300}")
    for call in (lambda: long.account("posts"), lambda: long.reserve(asking("a"), no_rdp)):
        with pytest.raises(MachineError, match="can't be opened: File name too long"):
            call()
    folder = Ledger(f"sqlite:///{tmp_path}")
    with pytest.raises(MachineError, match="can't be opened"):
        folder.reserve(asking("a"), no_rdp)


def test_a_locked_database(url: str, asking: Asking) -> None:
    """Whoever waits too long is told so, and has looked at nothing. Red when a writer does not lock before it looks."""
    holder, waiting = Ledger(url), Ledger(url, patience=0.3)
    holder.set_budget("posts", 10.0, 1e-5, 8.0)
    holder.reserve(asking("a"), lambda order: 1.0)
    with holder.store.write(), pytest.raises(MachineError, match="is locked by another process"):
        waiting.reserve(asking("b"), no_rdp)
    waiting.reserve(asking("b"), lambda order: 1.0)


@pytest.mark.postgres
def test_a_stopped_server(postgres_server: object, asking: Asking) -> None:
    from tests.privacy.ledger.databases import Server

    server = Server()
    try:
        ledger = Ledger(server.new_database())
        ledger.reserve(asking("a"), no_rdp)
        server.stop()
        for call in (lambda: ledger.account("posts"), lambda: ledger.touch("a")):
            with pytest.raises(MachineError, match="does not answer: connection ") as refused:
                call()
            assert "\n" not in str(refused.value)
        server.start()
        ledger.touch("a")
        assert ledger.verify() == (2, [])
    finally:
        server.remove()


@pytest.mark.postgres
def test_a_user_who_may_only_read(postgres_server: object, asking: Asking) -> None:
    import psycopg

    ledger = Ledger(url := postgres_server.new_database())  # type: ignore[attr-defined]
    ledger.reserve(asking("a"), no_rdp)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
    guest = Ledger(url.replace("tester@", "guest@"))
    assert guest.account("posts").spent_epsilon == 1
    with pytest.raises(MachineError, match="permission denied for table"):
        guest.touch("a")
