"""Sensitivity by identifiers: each recogniser, their precision and recall on made texts, and the score."""

from __future__ import annotations

import calendar
import itertools
import math
import random
import time
from collections import Counter

import pytest
from pydantic import ValidationError

from harness import plugins
from harness.conformance import check_score
from harness.data.synthetic.identifiers import luhn_digit
from harness.plugins import UserRecords
from policies.sensitivity.identifiers import WeightsParameters
from policies.sensitivity.national import LOCALES
from policies.sensitivity.recognisers import KINDS, iban_valid, luhn, recognise
from tests.populations import population

ALL = tuple(LOCALES)


def found(text: str, kind: str, locales=ALL) -> set[str]:
    return {one.value for one in recognise(text, locales) if one.kind == kind}


def score(*texts: str, **parameters) -> float:
    plugin = plugins.sensitivity.build("identifiers", parameters)
    return plugin.score(UserRecords(texts, tuple(len(text) // 4 for text in texts), 1))


# --- recognisers --------------------------------------------------------------------------------------------

THERE = [
    ("email", "Write to Ann.Lee+x@Mail.Example.co.uk.", "ann.lee+x@mail.example.co.uk"),
    ("email", "<jürgen@müller-söhne.example.de>", "jürgen@müller-söhne.example.de"),
    ("phone", "(415) 555-0132", "+14155550132"),
    ("phone", "+1 415-555-0132", "+14155550132"),
    ("phone", "call me: 4155550132", "+14155550132"),
    ("phone", "+44 (0)20 7946 0958, after six", "+442079460958"),
    ("phone", "020 7946 0958", "+442079460958"),
    ("phone", "07700 900123", "+447700900123"),
    ("phone", "0044 7700 900123", "+447700900123"),
    ("phone", "030/1234567", "+49301234567"),
    ("phone", "06 12 34 56 78", "+33612345678"),
    ("phone", "teléfono 612 345 678", "+34612345678"),
    ("phone", "cellulare 333 123 4567", "+393331234567"),
    ("phone", "333-1234567", "+393331234567"),
    ("phone", "+31 6 12345678", "+31612345678"),
    ("phone", "+91 98765 43210", "+919876543210"),
    ("card", "4111 1111 1111 1111", "4111111111111111"),
    ("card", "4111-1111-1111-1111", "4111111111111111"),
    ("card", "378282246310005", "378282246310005"),
    ("card", "3782 822463 10005", "378282246310005"),
    ("card", "2223003122003222", "2223003122003222"),
    ("iban", "DE89 3704 0044 0532 0130 00 please", "DE89370400440532013000"),
    ("iban", "gb82west12345698765432", "GB82WEST12345698765432"),
    ("iban", "FR14 2004 1010 0505 0001 3M02 606", "FR1420041010050500013M02606"),
    ("ip", "from 203.0.113.7.", "203.0.113.7"),
    ("ip", "http://198.51.100.9:8080/x", "198.51.100.9"),
    ("ip", "via 2001:db8::8a2e:370:7334", "2001:0db8:0000:0000:0000:8a2e:0370:7334"),
    ("key", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "ghp_" + "aB3" * 12, "ghp_" + "aB3" * 12),
    ("key", 'API_KEY="9f86d081884c7d65"', "9f86d081884c7d65"),
    ("key", "my password is Tr0ub4dor&3.", "Tr0ub4dor&3"),
    ("key", "https://bob:s3cret@db.example.com/", "s3cret"),
    (
        "key",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    ),
    ("national_id", "SSN 078-05-1120", "078051120"),
    ("national_id", "AB 12 34 56 C", "AB123456C"),
    ("national_id", "NHS number 943 476 5919", "9434765919"),
    ("national_id", "Steuer-ID: 36 574 261 809", "36574261809"),
    ("national_id", "2 95 10 99 126 111 93", "295109912611193"),
    ("national_id", "253072B07300470", "253072B07300470"),
    ("national_id", "DNI 12345678Z", "12345678Z"),
    ("national_id", "NIE X-2482300W", "X2482300W"),
    ("national_id", "RCCMNL83S18D969H", "RCCMNL83S18D969H"),
    ("national_id", "BSN 111222333", "111222333"),
    ("birth_date", "born on 12 March 1984", "1984-03-12"),
    ("birth_date", "DOB: March 12th, 1984", "1984-03-12"),
    ("birth_date", "geb. 12.3.1984", "1984-03-12"),
    ("birth_date", "née le 1er août 1990", "1990-08-01"),
    ("birth_date", "nacido el 2 de abril de 1988", "1988-04-02"),
    ("birth_date", "nata il 3 maggio 1955", "1955-05-03"),
    ("birth_date", "geboortedatum: 31-12-59", "1959-12-31"),
    ("birth_date", "1984-03-12 is my date of birth", "1984-03-12"),
]


@pytest.mark.parametrize(("kind", "text", "value"), THERE)
def test_what_is_recognised_is_normalised(kind, text, value):
    """Published examples. Red when a form, a checksum or a word of its kind is lost, or separators are kept."""
    assert [(one.kind, one.value) for one in recognise(text, ALL)] == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "@ann, see logo@2x.png and lodash@4.17.21",
        "git clone git@github.com:a/b.git",
        "user@localhost",
        "sent by noreply@example.com",
        "+12 345 678 visitors, +1 000-555-0132",
        "order number 415-555-0132",
        "612 345 678 inhabitants",
        "4155550132 rows",
        "415-555-01323",
        "4111 1111 1111 1112",  # checksum
        "9111 1111 1111 1110",  # no network
        "order number 4111111111111111",
        "4111-1111 1111-1111",  # mixed separators
        "550e8400-e29b-41d4-a716-446655440000",
        "DE89 3704 0044 0532 0130 01",  # checksum
        "DE89 3704 0044 0532 0130 0",  # too short
        "XX89 3704 0044 0532 0130 00",
        "version 1.2.3.4, v2.10.0.1 and firmware 20.4.1.9",
        "256.1.1.1 and 1.2.3 and 1.3.6.1.4.1",
        "192.168.0.1, 10.0.0.7, 127.0.0.1, 255.255.255.0",
        "12:30:45 and std::vector and a::b and dead:beef",
        "token is expired, password: required, secret = <none>",
        "sk-learn-and-other-python-packages",
        "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "000-12-3456, 666-12-3456, 912-12-3456, 123-00-4567, 123-45-0000",
        "GB 12 34 56 C and DA 12 34 56 C",
        "NHS number 943 476 5918",
        "943 476 5919",  # no word before it
        "Steuer-ID: 36 574 261 808",
        "Steuer-ID: 12 345 678 903",  # no digit twice
        "2 95 10 99 126 111 94",
        "12345678A",
        "RCCMNL83S18D969I",
        "BSN 111222334",
        "BSN 000000000",
        "111222333",
        "invoice of 2024-01-02, due 12 March 2024",
        "my birthday gift never came. It was sent on 2024-01-02",
        "the birthday party on 2024-06-01",
        "born on 31.2.1984 or 2201-01-01 or 1984-13-01",
        "stubborn 1984-03-12",
    ],
)
def test_near_misses_are_none(text):
    """Red when a checksum, a range, a boundary or a word beside the number is no longer looked at."""
    assert recognise(text, ALL) == []


def test_checksums_by_textbook():
    """Every single wrong digit is seen, by Luhn and modulo 97 alike. Red when a check accepts what is near."""
    card, iban = "4539578763621486", "DE89370400440532013000"
    assert luhn(card)
    assert iban_valid(iban)
    for i in range(16):
        assert [d for d in "0123456789" if luhn(card[:i] + d + card[i + 1 :])] == [card[i]]
    for i in range(2, 22):
        assert [d for d in "0123456789" if iban_valid(iban[:i] + d + iban[i + 1 :])] == [iban[i]]


def test_the_locales_decide_what_is_read():
    """Red when a country's forms are read without its locale, or the order of the locales is not kept."""
    assert found("078-05-1120", "national_id", ("us",)) == {"078051120"}
    assert found("078-05-1120", "national_id", ("de", "fr")) == set()
    assert found("020 7946 0958", "phone", ("us",)) == set()
    assert found("06-12345678", "phone", ("nl", "it")) == {"+31612345678"}
    assert found("06-12345678", "phone", ("it", "nl")) == {"+390612345678"}
    assert found("+44 20 7946 0958", "phone", ("us",)) == {"+442079460958"}
    assert found("born 3/4/1984", "birth_date", ("us", "gb")) == {"1984-03-04"}
    assert found("born 3/4/1984", "birth_date", ("gb", "us")) == {"1984-04-03"}
    assert found("born 25/4/1984", "birth_date", ("us",)) == {"1984-04-25"}
    assert found("geboren 3.4.1984", "birth_date", ("us",)) == set()


def test_each_stretch_of_text_is_one_identifier():
    """Red when overlapping finds are both kept: an IBAN's digits as a card, or a phone number for two countries."""
    text = "IBAN GB82 WEST 1234 5698 7654 32, phone 020 7946 0958, born 12.3.1984, https://ann:p4ss@x.example.com"
    hits = sorted(recognise(text, ALL), key=lambda one: one.start)
    assert [one.kind for one in hits] == ["iban", "phone", "birth_date", "key"]
    assert all(a.end <= b.start for a, b in itertools.pairwise(hits))


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "1 ",
            "a.",
            "a-",
            "+1(",
            "a@",
            "eyJ",
            "born ",
            "://a:",
            "0",
            "f:",
            "DE12 ",
            "12.12.",
            "token is ",
            "-",
            "9-9 ",
        ),
        *("x", "2001:", "1 de ", "sk-ab-", "password=", "a@b-", "born on 1.1.1980 "),
    ],
)
def test_a_hostile_text_takes_time_in_proportion(piece):
    """200,000 characters, seconds at most (it takes less than one). Red when a pattern backtracks without a bound."""
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    recognise(text, ALL)
    assert time.process_time() - began < 10


# --- precision and recall -----------------------------------------------------------------------------------

_NUMBERS = {  # published examples of each country's number
    "Steuer-ID {}": ("36574261809", "65929970489", "47036892816", "86095742719"),
    "NHS no. {}": ("9434765919", "9434765870"),
    "NIR {}": ("295109912611193", "253072B07300470", "253072A07300443", "185057800608491"),
    "C.F. {}": ("RSSMRA85T10A562S", "RCCMNL83S18D969H"),
    "my BSN is {}": ("111222333",),
}
_FRAMES = (
    "Hello, my router drops every evening. {} Please advise.",
    "Tuesday, evening: mild nausea since noon, 200 mg of ibuprofen at 14:30. {} Feeling better.",
    "{}",
    "I paid 1,299.00 for it in 2021 and wrote on 12/05/2023 already. {} Thanks!",
    "Slept 7 hours, pulse 72, pressure 120/80. {} Mood: calm.",
)


def _email(r):
    value = (
        f"{r.choice(['ann', 'bo.lee', 'k_x', 'zoe'])}{r.randrange(10**5)}@example.{r.choice(['com', 'co.uk', 'de'])}"
    )
    if r.random() < 0.04:
        return f"Write to {value.replace('@', ' (at) ')}.", value  # hidden on purpose: missed
    return r.choice(["Write to {}.", "({})", "mailto:{}", "{} is mine", "Reply-To: {}"]).format(value), value


def _phone(r):
    if r.random() < 0.5:
        area, line = r.choice(["206", "415", "808"]), f"01{r.randrange(100):02d}"
        forms = ["({0}) 555-{1}", "{0}-555-{1}", "+1 {0} 555 {1}", "1-{0}-555-{1}", "call {0}555{1}", "{0}.555.{1}"]
        return r.choice(forms).format(area, line) + ".", f"+1{area}555{line}"
    last = f"{r.randrange(1000):03d}"
    if r.random() < 0.08:
        return f"07700900{last}, any time.", f"+447700900{last}"  # nothing says that it is a phone number: missed
    forms = ["+44 7700 900{}", "07700 900{}", "0044 7700 900{}", "my mobile: 07700900{}", "+44(0)7700-900{}"]
    return r.choice(forms).format(last) + ", any time.", f"+447700900{last}"


def _card(r):
    digits = r.choice(["4242", "5555", "4000"]) + "".join(r.choices("0123456789", k=11))
    digits += luhn_digit(digits)
    sep = r.choice(["", " ", "-"])
    written = sep.join(digits[i : i + 4] for i in range(0, 16, 4))
    if r.random() < 0.04:
        return f"My order: {written} is the card.", digits  # misread as an order's number: missed
    return r.choice(["The card is {}.", "Visa {}, please", "{}", "paid with {} twice"]).format(written), digits


def _iban(r):
    country, letters = r.choice([("DE", 18), ("ES", 20), ("BE", 12), ("AT", 16)])
    account = "".join(r.choices("0123456789", k=letters))
    tail = "".join(str(ord(c) - 55) for c in country)
    value = f"{country}{98 - int(account + tail + '00') % 97:02d}{account}"
    written = value if r.random() < 0.5 else " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return r.choice(["Refund to {}.", "IBAN: {}", "{} is my account", "account {} and thanks"]).format(written), value


def _ip(r):
    value = f"{r.choice(['203.0.113', '198.51.100', '192.0.2'])}.{r.randrange(1, 255)}"
    if r.random() < 0.05:
        return f"The update from {value} failed.", value  # taken for a version: missed
    return r.choice(["I connect from {}.", "{}:443 in your log", "login by {} at 12:30", "http://{}/"]).format(
        value
    ), value


def _key(r):
    letters = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"
    value = "".join(r.choices(letters, k=36)) + "7a"
    forms = [
        ("ghp_{}", "ghp_" + value[:36]),
        ("sk_live_{}", "sk_live_" + value[-24:]),
        ("api_key = '{}'", value[-20:]),
        ("password: {}", value[-12:]),
        ("token={}", value),
        ("AKIA{}", "AKIA" + value[-16:].upper()),
    ]
    form, wanted = r.choice(forms)
    return form.format(wanted.removeprefix(form.partition("{")[0])), wanted


def _national_id(r):
    draw = r.random()
    if draw < 0.3:
        area, group, serial = r.randrange(1, 600), r.randrange(1, 100), r.randrange(1, 10000)
        return f"SSN {area:03d}-{group:02d}-{serial:04d}.", f"{area:03d}{group:02d}{serial:04d}"
    if draw < 0.5:
        number = r.randrange(10**7, 10**8)
        value = f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"
        return f"DNI {value}.", value
    if draw < 0.65:
        value = f"{r.choice(['AB', 'CE', 'JX'])}{r.randrange(10**6):06d}{r.choice('ABCD')}"
        return f"NI number: {' '.join([value[:2], value[2:4], value[4:6], value[6:8], value[8]])}.", value
    form, values = r.choice(list(_NUMBERS.items()))
    value = r.choice(values)
    if r.random() < 0.1 and value.isdigit() and len(value) < 12:
        return f"{value}, as you asked.", value  # nothing says what it is: missed
    return f"{form.format(value)}.", value


def _birth_date(r):
    y, m, d = r.randrange(1940, 2010), r.randrange(1, 13), r.randrange(13, 29)
    value = f"{y}-{m:02d}-{d:02d}"
    if r.random() < 0.06:
        return f"I turned forty on {value}.", value  # none of the words: missed
    written = r.choice(
        [
            value,
            f"{d}.{m}.{y}",
            f"{m}/{d}/{y}",
            f"{d} {calendar.month_name[m]} {y}",
            f"{calendar.month_name[m]} {d}, {y}",
        ]
    )
    forms = ["I was born on {}.", "DOB {} on the label.", "Date of birth: {}", "geboren am {}", "born in Ohio, {}"]
    return r.choice(forms).format(written), value


MAKERS = {
    "email": _email, "phone": _phone, "card": _card, "iban": _iban,
    "ip": _ip, "key": _key, "national_id": _national_id, "birth_date": _birth_date,
}  # fmt: skip


def _hard(r) -> str:
    """A sentence without any identifier that looks like it has one."""
    digits = "".join(r.choices("0123456789", k=20))
    y, m, d = r.randrange(2000, 2025), r.randrange(1, 13), r.randrange(1, 29)
    if r.random() < 0.005:  # on purpose: nothing tells these from an address and a phone number
        return r.choice(
            [f"It says {d}.{m}.{y % 100}.{digits[0]} there.", f"Cable 4{digits[:2]}-555-{digits[2:6]} broke."]
        )
    return r.choice(
        [
            f"Order number {digits[:16]} never came.",
            f"Tracking: {digits[:4]} {digits[4:8]} {digits[8:12]} {digits[12:16]}.",
            f"It is part {digits[:8]}-{digits[8:11]}.",
            f"After version {d}.{m}.{y % 100}.{digits[0]} it crashed.",
            f"Driver {d}.{m}.{digits[1]}.{digits[:4]} is installed.",
            f"The build {d}.{m}.{y % 100}.{digits[0]} fails.",
            f"The invoice of {y}-{m:02d}-{d:02d} is wrong.",
            f"Seen on {d}.{m}.{y} by Dr. Novak.",
            f"Ticket {digits[:3]}-{digits[3:5]}-{digits[5:9]} is open.",
            f"The receipt {digits[:10]} has DE{digits[:20]} on it.",
            f"Ref. {digits[:3]}-{digits[3:6]}-{digits[6:10]}.",
            f"Commit {''.join(r.choices('0123456789abcdef', k=40))} broke it.",
            f"id {''.join(r.choices('0123456789abcdef', k=8))}-41d4-a716-{digits[:12]}",
            "The password is not accepted and the token: expired.",
            f"Mention @ann{d} or icon@{m}x.png.",
            f"Router at 192.168.{d}.{m}, mask 255.255.255.0.",
            f"Glucose 1{m}, weight {d}.{m} kg, {d}{digits[:1]} {digits[3:6]} {digits[6:9]} steps in all.",
            f"My birthday party was fine. Your mail of {y}-{m:02d}-{d:02d} was not.",
            f"Code {digits[:16]} on the box.",  # one in a hundred is a card's by chance
        ]
    )


def measured(rounds: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Precision and recall by kind on made texts: half with one identifier, each with two hard negatives."""
    r = random.Random(seed)
    right, wrong, missed = Counter(), Counter(), Counter()
    for _ in range(rounds):
        for kind in KINDS:
            sentence, value = MAKERS[kind](r)
            for wanted in ({(kind, value)}, set()):
                parts = [_hard(r), sentence, _hard(r)] if wanted else [_hard(r), _hard(r)]
                r.shuffle(parts)
                text = r.choice(_FRAMES).format(" ".join(parts))
                got = {(one.kind, one.value) for one in recognise(text, ALL)}
                right.update(k for k, _ in got & wanted)
                wrong.update(k for k, _ in got - wanted)
                missed.update(k for k, _ in wanted - got)
    precision = {k: right[k] / (right[k] + wrong[k]) for k in KINDS}
    return precision, {k: right[k] / (right[k] + missed[k]) for k in KINDS}


FLOORS = {  # precision, recall
    "email": (0.99, 0.93),
    "phone": (0.88, 0.90),
    "card": (0.91, 0.93),
    "iban": (0.96, 0.99),
    "ip": (0.88, 0.90),
    "key": (0.99, 0.99),
    "national_id": (0.99, 0.96),
    "birth_date": (0.97, 0.91),
}


def test_precision_and_recall_on_made_texts():
    """Of 300 texts of each kind and 2,400 without any; the set holds cases that are known to be missed or mistaken.

    Fixed draws: no false alarms. Measured (precision, recall): e-mail 1.00, 0.96; phone 0.91, 0.95; card 0.96, 0.97;
    IBAN 0.99, 1.00; IP 0.96, 0.94; key 1.00, 1.00; national id 1.00, 0.97; date of birth 0.99, 0.92.

    Red when a recogniser misses what it saw, or takes order numbers, versions or ordinary dates for identifiers.
    """
    precision, recall = measured(300, seed=3)
    assert {k for k in KINDS if precision[k] < FLOORS[k][0]} == set()
    assert {k for k in KINDS if recall[k] < FLOORS[k][1]} == set()


@pytest.mark.parametrize("scenario", ["support", "health-notes", "chat", "code-review"])
def test_what_the_made_population_holds_is_found(scenario):
    """Kinds per user, against the population's truth; planted secrets, other texts and styles are there as well.

    Red when a kind is missed or seen where none is. In code reviews half of the dates of birth stand in "Do not log …",
    which nothing tells from another date.
    """
    rates = dict.fromkeys(("email", "phone", "card", "iban", "ip", "birth_date"), 0.1)
    made = population(
        scenario, 150, identifiers=rates, households={"mentions": 0}, secrets={"users": 50}, outliers={"fraction": 0.1}
    )
    right, wrong, missed = Counter(), Counter(), Counter()
    for i in range(150):
        got = {one.kind for text in made.texts(i) for one in recognise(text, ("us", "gb", "de"))}
        truth = set(made.truth(i).identifiers)
        right.update(got & truth)
        wrong.update(got - truth)
        missed.update(truth - got)
    assert sum(wrong.values()) == 0
    floors = {"birth_date": 0.5} if scenario == "code-review" else {}
    assert {k: missed[k] for k in rates if right[k] < floors.get(k, 1) * (right[k] + missed[k])} == {}
    assert min(right.values()) > 15


# --- the score ----------------------------------------------------------------------------------------------

EMAILS = [f"My address is a{i}@example.com." for i in range(64)]


def test_the_score_is_logarithmic_between_its_ends():
    """Red when the ends move, the scale is linear, or the weights are not used."""
    assert score() == score("nothing here") == 0.0
    assert score(EMAILS[0], low=1, high=16) == 0.0
    assert score(*EMAILS[:4], low=1, high=16) == pytest.approx(0.5)
    assert score(*EMAILS[:16], low=1, high=16) == score(*EMAILS, low=1, high=16) == 1.0
    assert score("4111 1111 1111 1111") == pytest.approx(math.log(6) / math.log(40))
    assert score(EMAILS[0], weights={"email": 4}, low=1, high=16) == pytest.approx(0.5)
    assert score(EMAILS[0], weights={"email": 0}) == 0.0


def test_an_identifier_counts_once_however_often_and_however_written():
    """Red when occurrences are counted: who signs every mail would score more than who wrote ten people's numbers."""
    once = score("+1 415-555-0132")
    assert once > 0
    assert score(*["call (415) 555-0132 or 415-555-0132"] * 50, "+1 415-555-0132") == once
    assert score("call (415) 555-0133", "+1 415-555-0132") > once


def test_the_score_depends_on_the_users_texts_alone():
    """Red when something is kept between users, or the order of records matters."""
    plugin = plugins.sensitivity.build("identifiers", {})
    users = [UserRecords(tuple(EMAILS[i : i + 5]), (9,) * 5, 1) for i in range(0, 20, 2)]
    first = [plugin.score(u) for u in users]
    assert [plugin.score(UserRecords(u.texts[::-1], (1,) * 5, 7)) for u in reversed(users)] == first[::-1]


def test_it_conforms():
    """Red when it reaches for files or the network, prints, keeps state, or leaves [0, 1]."""
    check_score(plugins.sensitivity.get("identifiers"))
    check_score(plugins.sensitivity.get("identifiers"), {"locales": ["de"], "weights": {"email": 0}})


def test_every_kind_has_a_weight():
    """Red when a recogniser is added without a weight, or a weight without a recogniser."""
    assert tuple(WeightsParameters.model_fields) == KINDS


@pytest.mark.parametrize(
    ("parameters", "key", "said"),
    [
        ({"weights": {"emial": 1}}, ("weights", "emial"), "Extra inputs"),
        ({"weights": {"email": -1}}, ("weights", "email"), "greater than or equal to 0"),
        ({"weights": {"email": math.inf}}, ("weights", "email"), "finite"),
        ({"weights": dict.fromkeys(KINDS, 0)}, ("weights",), "at least one kind must count"),
        ({"locales": ["us", "xx"]}, ("locales", 1), "Input should be 'us'"),
        ({"locales": ["us", "us"]}, ("locales",), '"us" is given more than once'),
        ({"locales": []}, ("locales",), "at least 1"),
        ({"low": 0}, ("low",), "greater than 0"),
        ({"low": 5, "high": 5}, (), r"high: must be above low \(5\)"),
        ({"lwo": 1}, ("lwo",), "Extra inputs"),
    ],
)
def test_bad_parameters_are_refused_where_they_stand(parameters, key, said):
    """Red when a constraint is taken out, or reported at another key."""
    with pytest.raises(ValidationError, match=said) as caught:
        plugins.sensitivity.build("identifiers", parameters)
    assert [error["loc"] for error in caught.value.errors()] == [key]
