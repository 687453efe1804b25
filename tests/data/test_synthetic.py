"""Made populations: what the parameters say is what the texts hold, always the same, and never held in memory."""

from __future__ import annotations

import math
import os
import re
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
from harness.data.synthetic import Population, SyntheticParameters, planted
from harness.data.synthetic.draws import Draws, Shuffle, Weighted
from harness.data.synthetic.grammar import Grammar
from harness.data.synthetic.identifiers import luhn_digit
from harness.data.synthetic.scenarios import SCENARIOS
from harness.errors import ArgumentError
from harness.spec.models import DataBlock

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = Columns("user", "text", ("plan", "region"))
QUIET = {"email": 0, "phone": 0, "card": 0, "iban": 0, "ip": 0, "birth_date": 0}
RICH = {
    "records": {"median": 4, "sigma": 0.8, "max": 60},
    "secrets": {"users": 30, "repeats": 2},
    "households": {"fraction": 0.3, "size": 3},
    "copies": {"fraction": 0.2},
    "outliers": {"fraction": 0.1},
}
GOLDEN = (
    "Hi, my mesh box drops every evening since Tuesday... Your help page says to wait, so I moved the box and the same "
    "thing happened... Can you look into it? Our landline is +44 7700 900599. Kind regards, Rosa"
)


def parameters(scenario: str = "support", users: int = 300, **changes) -> SyntheticParameters:
    return SyntheticParameters.model_validate({"scenario": scenario, "users": users, "seed": 11} | changes)


def population(scenario: str = "support", users: int = 300, **changes) -> Population:
    return Population(parameters(scenario, users, **changes))


def digest_of(feed) -> list[bytes]:
    found: list[bytes] = []
    feed(found.append)
    return found


# --- the same every time ------------------------------------------------------------------------------------

_PRINT = (
    "import hashlib; from tests.data.test_synthetic import *\n"
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


# --- identifiers --------------------------------------------------------------------------------------------

_PATTERNS = {
    "email": r"[a-z]+\.[a-z]+\d+@example\.(?:com|net|org)",
    "phone": r"\+1 \d{3}-555-01\d\d|\+44 7700 900\d{3}",
    "card": r"\d{4} \d{4} \d{4} \d{4}",
    "iban": r"DE\d{20}",
    "ip": r"(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d{1,3}",
    "birth_date": r"(?:19|20)\d\d-\d\d-\d\d",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", _PATTERNS)
def test_identifiers_come_at_their_rate_and_are_the_users_own(scenario, kind):
    """Five standard errors. Break: an identifier drawn anew for every record."""
    made = population(
        scenario, 150, identifiers=QUIET | {kind: 0.3}, households={"mentions": 0}, records={"law": "fixed"}
    )
    hits = 0
    for i in range(150):
        found = [re.findall(_PATTERNS[kind], text) for text in made.texts(i)]
        assert len({value for values in found for value in values}) <= 1
        assert sum(map(bool, found)) == made.truth(i).identifiers.get(kind, 0)
        hits += sum(map(bool, found))
    assert abs(hits / 1200 - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 1200)


def identifiers_of(kind: str) -> set[str]:
    made = population(users=400, identifiers=QUIET | {kind: 1}, households={"mentions": 0}, records={"law": "fixed"})
    return {re.findall(_PATTERNS[kind], next(made.texts(i)))[0] for i in range(400)}


def test_cards_and_ibans_are_valid_and_nobodys():
    """Checksums by textbook, not by our own function. Break: the check digit left at 0."""
    assert luhn_digit("7992739871") == "3"
    cards = identifiers_of("card")
    for card in cards:
        digits = [int(d) for d in card.replace(" ", "")]
        doubled = [2 * d for d in digits[-2::-2]]
        assert (sum(digits[-1::-2]) + sum(d // 10 + d % 10 for d in doubled)) % 10 == 0
        assert card.startswith(("4242 4242 4242", "4111 1111 1111", "4000 0000 0000", "5555 5555 5555"))
    ibans = identifiers_of("iban")
    for iban in ibans:
        assert int(iban[4:] + "1314" + iban[2:4]) % 97 == 1
        assert iban[4] == "0"  # no bank code begins with 0
    assert len(ibans) == 400
    assert len(cards) > 200


def test_no_identifier_where_none_is_asked_for():
    made = population(identifiers=QUIET, households={"mentions": 0})
    everything = "\n".join(text for i in range(100) for text in made.texts(i))
    assert not any(re.search(pattern, everything) for pattern in _PATTERNS.values())


# --- secrets ------------------------------------------------------------------------------------------------

_CODE = re.compile(r"\d{4}-\d{4}-\d{4}")


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("wanted", [25, 0.125])
def test_secrets_are_where_they_are_said_to_be_and_nowhere_else(scenario, wanted):
    """Copies, outliers and households included. Break: a copied text that carries its owner's secret along."""
    made = population(scenario, 200, **RICH | {"secrets": {"users": wanted, "repeats": 2}})
    found = {
        (made.user(i), code, j)
        for i in range(200)
        for j, text in enumerate(made.texts(i))
        for code in _CODE.findall(text)
    }
    said = list(planted(made.parameters))
    assert len(said) == len(set(said))
    assert found == set(said)
    assert len({one.user for one in said}) == len({one.secret for one in said}) == 25
    for i in range(200):
        assert set(made.truth(i).secrets) == {one.record for one in said if one.user == made.user(i)}
        assert len(made.truth(i).secrets) in (0, min(2, made.volume(i)))


def test_a_secret_stands_after_its_fixed_words():
    """An audit compares with other codes after the same words."""
    for scenario in SCENARIOS:
        made = population(scenario, 50, secrets={"users": 3})
        for one in made.planted():
            text = list(made.texts(int(one.user[1:])))[one.record]
            assert f"{made.scenario.secret}{one.secret}." in text


# --- correlated users and outliers --------------------------------------------------------------------------


def test_households_share_their_facts_and_others_do_not():
    """Break: the home drawn by user, not by household."""
    made = population(users=600, households={"fraction": 0.5, "size": 4, "mentions": 0.5})
    members: dict[int | None, list[int]] = {}
    for i in range(600):
        members.setdefault(made.household(i), []).append(i)
    alone = members.pop(None)
    assert len(alone) == 300
    assert sorted(map(len, members.values())) == [4] * 75
    for house in members.values():
        assert len({tuple(made.home(i).items()) for i in house}) == 1
        assert len({made.truth(i).household for i in house}) == 1
    assert len({made.home(i)["my_address"] for i in alone}) > 290
    first = next(iter(members.values()))
    address = made.home(first[0])["my_address"]
    told = [i for i in first if any(address in text for text in made.texts(i))]
    strangers = [i for i in alone if any(address in text for text in made.texts(i))]
    assert len(told) >= 2
    assert strangers == []


def test_copies_are_copies_of_somebody_elses_own_text():
    """Five standard errors. Break: the copier's own facts or habits let into the copy."""
    made = population(users=400, copies={"fraction": 0.25}, records={"law": "fixed", "count": 6})
    texts = [list(made.texts(i)) for i in range(400)]
    copies = 0
    for i in range(400):
        for j, owner, record in made.truth(i).copied:
            other = int(owner[1:])
            assert other != i
            assert texts[i][j] == texts[other][record]
            assert record not in {mine for mine, _, _ in made.truth(other).copied}
            copies += 1
    assert abs(copies / 2400 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2400)
    assert not population(users=50).truth(0).copied


def words_of(texts) -> Counter[str]:
    return Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_outliers_are_unlike_the_others_in_what_their_flag_says(scenario):
    """Break: the flag set and the odd grammar, the rare topic or the volume not used."""
    made = population(scenario, 500, outliers={"fraction": 0.2}, records={"median": 5, "sigma": 0.5, "max": 1000})
    by_kind: dict[str | None, list[int]] = {}
    for i in range(500):
        by_kind.setdefault(made.truth(i).outlier, []).append(i)
    assert {kind: len(users) > 15 for kind, users in by_kind.items()} == dict.fromkeys(
        (None, "style", "topic", "volume"), True
    )
    assert len(by_kind[None]) == 400
    mean = {kind: sum(made.volume(i) for i in users) / len(users) for kind, users in by_kind.items()}
    assert mean["volume"] > 10 * mean[None] > 5 * mean["topic"] / 1.5
    ordinary = words_of(text for i in by_kind[None] for text in made.texts(i))
    for i in by_kind["topic"]:
        assert set(made.truth(i).topics) <= set(made.scenario.rare)
        assert sum(ordinary[word] == 0 for word in words_of(made.texts(i))) >= 1
    assert all(set(made.truth(i).topics) <= set(made.scenario.topics) for i in by_kind[None])
    for i in by_kind["style"]:
        assert all(text.isupper() or " / " in text for text in ascii_words(made.texts(i)))
    assert not any(" / " in text for i in by_kind[None][:100] for text in made.texts(i))


def ascii_words(texts) -> list[str]:
    """Texts until their first fact or identifier, which no style changes."""
    return [" ".join(text.split(" ")[:3]) for text in texts]


# --- styles, structure --------------------------------------------------------------------------------------


def attribution(made: Population, users: int) -> float:
    """Fraction of second halves of users' records whose author naive Bayes on words finds among all."""
    texts = [list(made.texts(i)) for i in range(users)]
    trained = [words_of(t[: len(t) // 2]) for t in texts]
    vocabulary = len(set().union(*trained))
    totals = [sum(counts.values()) + vocabulary for counts in trained]
    hits = 0
    for i, mine in enumerate(texts):
        asked = words_of(mine[len(mine) // 2 :])
        scores = [
            sum(n * math.log((counts[word] + 1) / total) for word, n in asked.items())
            for counts, total in zip(trained, totals, strict=True)
        ]
        hits += max(range(users), key=scores.__getitem__) == i
    return hits / users


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_texts_can_be_attributed_to_their_users_by_style_and_topic(scenario):
    """40 users: chance is 1 in 40. Break: habits that are the same for all."""
    plain = {"identifiers": QUIET, "households": {"mentions": 0}, "records": {"law": "fixed", "count": 16}}
    alike = plain | {"styles": {"strength": 0}, "topics": {"focus": 0}}
    own, same = attribution(population(scenario, 40, **plain), 40), attribution(population(scenario, 40, **alike), 40)
    assert own > 0.4
    assert same < own / 2


def test_scenarios_read_differently():
    """Break: two scenarios that share a grammar."""
    common = {s: words_of(t for i in range(100) for t in population(s).texts(i)) for s in SCENARIOS}
    for a in SCENARIOS:
        for b in SCENARIOS:
            overlap = sum((common[a] & common[b]).values()) / min(common[a].total(), common[b].total())
            assert overlap == 1 if a == b else overlap < 0.6


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_rule_of_every_topic_can_be_expanded(scenario):
    found = SCENARIOS[scenario]
    facts = {f"my_{name}": name for name in ("first", "last", "address", "landline", "pet", "value")}
    for topic in (*found.topics, *found.rare):
        for odd in (False, True):
            grammar = found.grammar(topic, odd=odd)
            for symbol in found.rules:
                for k in range(8):
                    text = grammar.expand(symbol, lambda _, n, k=k: k % n, facts)
                    assert text
                    assert "{" not in text
    assert set(found.habits) <= set(found.rules)
    assert set(found.odd) <= set(found.rules)


@pytest.fixture
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
    yield torch
    torch.set_num_threads(before)


def test_a_small_model_learns_the_structure(tmp_path, one_thread):
    """A two-layer Llama gets clearly below what the characters' frequencies give. Break: characters shuffled."""
    torch = one_thread
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import save_base

    base = save_base(tmp_path / "base", edit=lambda model: [p.mul_(0.2) for p in model.parameters() if p.dim() == 2])
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    made = population(users=200)
    ids = tokenizer("\n".join(t for i in range(200) for t in made.texts(i)), add_special_tokens=False)["input_ids"]
    counts = Counter(ids)
    entropy = -sum(n / len(ids) * math.log(n / len(ids)) for n in counts.values())
    blocks = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    held, blocks = blocks[-64:], blocks[:-64]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        batch = blocks[torch.randint(len(blocks), (8,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss = model(input_ids=held, labels=held).loss.item()
    assert loss < entropy - 0.5


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
