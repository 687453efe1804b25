"""Made populations: what the parameters say is what the texts hold, always the same, and never held in memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from harness.data.corpus import build_corpus
from harness.data.sources.base import Columns, Record, open_source
from harness.data.sources.synthetic import Synthetic
from harness.data.synthetic import Population, planted
from harness.data.synthetic.draws import Draws, Shuffle, Weighted
from harness.data.synthetic.grammar import Grammar
from harness.data.synthetic.scenarios import SCENARIOS
from harness.errors import ArgumentError
from harness.spec.models import DataBlock
from tests.populations import RICH, parameters, population

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = Columns("user", "text", ("plan", "region"))
GOLDEN = (
    "Hi, my mesh box drops every evening since Tuesday... Your help page says to wait, so I moved the box and the same "
    "thing happened... Can you look into it? Our landline is +44 7700 900599. Kind regards, Rosa"
)


def digest_of(feed) -> list[bytes]:
    found: list[bytes] = []
    feed(found.append)
    return found


# --- the same every time ------------------------------------------------------------------------------------

_PRINT = (
    "import hashlib; from tests.populations import *\n"
    "made = population(**RICH)\n"
    "found = [[made.attributes(i), list(made.texts(i)), sorted(made.truth(i).flags)] for i in range(40)]\n"
    "print(hashlib.sha256(repr([found, list(made.planted())]).encode()).hexdigest())"
)


def test_every_process_makes_the_same_texts():
    """Break: Python's own `hash` of a string anywhere in the draws."""
    found = set()
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _PRINT]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert len(found) == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_user_alone_is_the_user_of_the_stream(scenario):
    """Break: a draw taken from a stream that all users share."""
    source = Synthetic(parameters(scenario, 60, **RICH))
    streamed: dict[str, list[str]] = {}
    for record in source.records(COLUMNS):
        assert isinstance(record, Record)
        streamed.setdefault(record.user, []).append(record.text)
    for i in (59, 0, 17):
        alone = population(scenario, 60, **RICH)
        assert list(alone.texts(i)) == streamed[alone.user(i)]
        assert alone.truth(i).records == len(streamed[alone.user(i)])
    assert list(streamed) == [f"u{i:06d}" for i in range(60)]


def test_another_seed_makes_other_texts_and_another_column_changes_nothing():
    made, other = population(), population(seed=12)
    assert [list(made.texts(i)) for i in range(5)] != [list(other.texts(i)) for i in range(5)]
    more = population(demographics={"plan": {"free": 0.7, "team": 0.2, "enterprise": 0.1}, "x": {"a": 1, "b": 1}})
    assert [made.attributes(i)["plan"] for i in range(100)] == [more.attributes(i)["plan"] for i in range(100)]


def test_texts_do_not_change_unnoticed():
    """Who changes this line raises VERSION too: the corpora that others keep are then built again."""
    assert next(population().texts(0)) == GOLDEN


def test_the_fingerprint_holds_every_parameter_and_the_grammar(monkeypatch):
    """Break: one block left out of what is fed."""
    base = digest_of(Synthetic(parameters()).fingerprint)
    assert base == digest_of(Synthetic(parameters()).fingerprint)
    for change in ({"seed": 12}, {"users": 301}, {"topics": {"focus": 0.5}}, {"secrets": {"users": 1}}, RICH):
        assert digest_of(Synthetic(parameters(**change)).fingerprint) != base
    assert digest_of(Synthetic(parameters("chat")).fingerprint) != base
    monkeypatch.setattr("harness.data.synthetic.population.VERSION", 2)
    assert digest_of(Synthetic(parameters()).fingerprint) != base


# --- public columns and volume ------------------------------------------------------------------------------


def test_public_columns_have_the_declared_shares_and_no_text():
    """Five standard errors: false alarms below 1e-5. Break: weights not normalised."""
    n = 20_000
    source = Synthetic(parameters(users=n, demographics={"plan": {"free": 6, "paid": 3, "vip": 1}, "x": {"only": 1}}))
    found = list(source.public(Columns("user", "text", ("plan",))))
    assert [user for user, _ in islice(found, 2)] == ["u000000", "u000001"]
    assert all(set(attributes) == {"plan"} for _, attributes in found)
    shares = Counter(attributes["plan"] for _, attributes in found)
    for name, share in {"free": 0.6, "paid": 0.3, "vip": 0.1}.items():
        assert abs(shares[name] / n - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_public_makes_no_text(monkeypatch):
    monkeypatch.setattr(Population, "texts", None)
    monkeypatch.setattr(Population, "_text", None)
    assert len(list(Synthetic(parameters()).public(COLUMNS))) == 300


def volumes(users: int = 4000, **records) -> list[int]:
    made = population(users=users, records=records)
    return sorted(made.volume(i) for i in range(users))


def hill(values: list[int], top: int) -> float:
    """Hill's estimate of the tail index from the largest values (sorted)."""
    tail = values[-top:]
    return 1 / (sum(math.log(v / values[-top - 1]) for v in tail) / top)


def test_lognormal_volume_has_its_median_and_tail():
    """Break: the exponential left out, or `sigma` ignored."""
    found = volumes(median=10, sigma=1.0, max=10_000)
    assert found[2000] in (9, 10, 11)
    assert 0.85 < math.log(found[3365] / found[2000]) < 1.15  # a std above: 84.1 %
    by_mean = volumes(mean=10 * math.exp(0.5), sigma=1.0, max=10_000)
    assert by_mean == found
    assert volumes(median=10, sigma=1.0, max=12)[-1] == 12


def test_zipf_volume_has_its_tail():
    """The tail index of P[n] ∝ n^-2.5 is 1.5. Break: the exponent off by one."""
    found = volumes(law="zipf", exponent=2.5, max=100_000)
    assert abs(found.count(1) / 4000 - 0.745) < 0.05  # 1 / ζ(2.5)
    assert 1.1 < hill(found, 150) < 2.0


def test_fixed_volume():
    assert set(volumes(users=50, law="fixed", count=3)) == {3}


# --- streaming ----------------------------------------------------------------------------------------------


def test_a_million_users_stream_without_being_held():
    """A slice of the million, in bounded memory and time. Break: a table of users, or a list of records."""
    source = Synthetic(parameters(users=1_000_000, **RICH))
    tracemalloc.start()
    started = time.perf_counter()
    seen = sum(1 for _ in islice(source.public(COLUMNS), 20_000))
    records = sum(1 for _ in islice(source.records(COLUMNS), 1000))
    secrets = sum(1 for _ in planted(parameters(users=1_000_000, secrets={"users": 1000})))
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (seen, records, secrets) == (20_000, 1000, 1000)
    assert peak < 8 << 20
    assert seconds < 60  # some seconds; tracing slows it


def test_the_last_of_a_hundred_million_is_there_at_once():
    made = population(users=100_000_000, **RICH)
    assert list(made.texts(99_999_999))
    assert made.user(99_999_999) == "u99999999"


# --- pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 257])
def test_a_shuffle_is_a_permutation_with_its_inverse(n):
    """Break: rounds not reversed on the way back."""
    order = Shuffle(Draws(3), "x", n)
    places = [order.at(k) for k in range(n)]
    assert sorted(places) == list(range(n))
    assert [order.place(i) for i in places] == list(range(n))
    assert n < 10 or places != list(range(n))


def test_weighted_names_and_wrong_grammars():
    weighted = Weighted({"a": 1.0, "b": 3.0})
    assert [weighted.at(f) for f in (0.0, 0.24, 0.26, 0.999999999)] == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="body uses gone, which has no rule"):
        Grammar({"body": "{gone}"})
    kept = Grammar({"body": "{=x} {=x} {x}", "x": "a|b|c"})
    answers = iter([0, 2])
    assert kept.expand("body", lambda _, n: next(answers), {}) == "a a c"


# --- as a source --------------------------------------------------------------------------------------------


def data_block(**changes) -> DataBlock:
    source = {"type": "synthetic", "scenario": "chat", "users": 30, "records": {"law": "fixed", "count": 3}}
    block = {"name": "made", "source": source, "max_tokens": 64, "holdout": {"users": 0.2, "visibility": "public"}}
    return DataBlock.model_validate(block | changes)


def test_a_corpus_is_built(tmp_path, tokenizer):
    data = data_block(attributes=["plan"])
    corpus = build_corpus(
        open_source(data, tmp_path),
        Columns.of(data),
        tokenizer=tokenizer,
        tokenizer_digest="bytes",
        data=data,
        cache_dir=tmp_path / "cache",
        private_dir=None,
    )
    assert corpus.n_users == 30
    assert corpus.bad_records == 0
    public = dict(open_source(data, tmp_path).public(Columns.of(data)))
    assert {corpus.attributes(u)["plan"] for u in range(30)} == {a["plan"] for a in public.values()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "user_id"}, 'data.user: in the source synthetic, the column of the user is "user"'),
        ({"text": "body"}, 'data.text: in the source synthetic, the column of the text is "text"'),
        ({"attributes": ["plam"]}, 'data.attributes: no record of the source synthetic has the column "plam"'),
    ],
)
@pytest.mark.parametrize("door", ["records", "public"])
def test_wrong_columns_are_named(changes, message, door, tmp_path):
    data = data_block(**changes)
    with pytest.raises(ArgumentError) as caught:
        list(getattr(open_source(data, tmp_path), door)(Columns.of(data)))
    assert str(caught.value).startswith(message)


def test_contradictions_are_one_line_without_a_spec_too(tmp_path):
    source = {"type": "synthetic", "scenario": "chat", "users": 3, "secrets": {"users": 4}}
    with pytest.raises(ArgumentError, match=r"^data\.source: 4 are more than the 3 users$"):
        open_source(data_block(source=source), tmp_path)
