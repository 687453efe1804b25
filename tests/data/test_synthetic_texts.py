"""What made users write: identifiers, secrets, shared and copied text, outliers, and styles."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from harness.data.synthetic import Population, planted
from harness.data.synthetic.identifiers import luhn_digit
from harness.data.synthetic.scenarios import SCENARIOS
from tests.populations import QUIET, RICH, population, words_of

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
