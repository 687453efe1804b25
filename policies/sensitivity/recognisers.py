"""Recognises personal identifiers in a text, by form, checksum and the words beside them. No model, no network.

Every pattern is bounded in length, so that a hostile text takes time in proportion to its length. What is found is
private; it is returned normalised, so that the same identifier written in two ways is one.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from policies.sensitivity.national import LOCALES, WORD_REACH, Locale

KINDS = ("email", "phone", "card", "iban", "ip", "key", "national_id", "birth_date")


class Found(NamedTuple):
    """An identifier in a text. Private.

    Attributes:
        kind: One of `KINDS`.
        value: Normalised: lower case, or digits without separators.
        start: First character.
        end: One past the last character.
    """

    kind: str
    value: str
    start: int
    end: int


def recognise(text: str, locales: Sequence[str]) -> list[Found]:
    """All identifiers in a text; where two overlap, the one of the kind that is harder to mistake.

    Args:
        text: Any text. Private.
        locales: Names of `LOCALES`; where two read a text differently, the first one's reading counts.
    """
    there = [LOCALES[name] for name in locales]
    taken = bytearray(len(text))
    found: list[Found] = []
    for candidates in (
        _keys(text),
        _emails(text),
        _ibans(text),
        _national_ids(text, there),
        _cards(text),
        _ips(text),
        _birth_dates(text, there),
        _phones(text, there),
    ):
        for one in candidates:
            if not any(taken[one.start : one.end]):
                taken[one.start : one.end] = b"\1" * (one.end - one.start)
                found.append(one)
    return found


_OTHERWISE = re.compile(
    r"(?<!\w)(?:order|invoice|ticket|case|tracking|parcel|shipment|serial|part|sku|article|item|imei|iccid|batch|lot"
    r"|reference|ref|customer|bestell|rechnungs?|auftrags?|commande|facture|pedido|factura|ordine|fattura)"
    r"(?:[ -]?(?:numbers?|nummer|no|nr|num[eé]ro|n[uú]mero|id|code))?[.:#]{0,2} ?(?:is |was |= ?)?[#(\"']{0,2}$",
    re.IGNORECASE,
)


def _called_otherwise(text: str, start: int) -> bool:
    """Whether what stands right before says that a number is that of an order, a parcel, a device and so on."""
    return _OTHERWISE.search(text, max(0, start - WORD_REACH), start) is not None


def _plain(value: str) -> str:
    return re.sub(r"[\W_]", "", value).upper()


# --- keys and tokens ----------------------------------------------------------------------------------------

_ISSUED = re.compile(
    r"(?<![\w-])(?:"
    r"A(?:KI|SI)A[0-9A-Z]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255}|glpat-[\w-]{20,64}"
    r"|xox[abposr]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|[srp]k_(?:live|test)_[0-9A-Za-z]{16,250}|whsec_[0-9A-Za-z]{24,250}"  # Stripe
    r"|AIza[0-9A-Za-z_-]{35}"  # Google
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,250}"
    r"|SG\.[\w-]{22}\.[\w-]{43}"  # SendGrid
    r"|eyJ[\w-]{10,4000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"  # JSON web tokens, RFC 7519
    r")(?![\w-])",
    re.ASCII,
)
_OPAQUE = re.compile(r"(?<![\w-])sk-(?:[a-z]{2,5}[0-9]{0,2}-){0,2}[A-Za-z0-9_-]{20,200}(?![\w-])")
_PEM = re.compile(r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----")
_IN_URL = re.compile(r"(?<=://)[^\s:/@]{1,64}:([^\s:/@]{3,128})(?=@)")
_ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9])(?:api[ _-]?key|access[ _-]?key|secret(?:[ _-]?key)?|(?:auth|access|api|bearer)[ _-]?token|token"
    r"|pass(?:word|wd|phrase)|pwd|kennwort|passwort|mot de passe|contraseña)[\"']?"
    r" {0,2}(?:=|:|is\b|ist\b|est\b|es\b) {0,2}[\"']?"
    r"([A-Za-z0-9_+/=.~!@#%^&*-]{8,128})",
    re.IGNORECASE,
)
_FEWEST_DIFFERENT = 6


def _random(value: str) -> bool:
    """Whether it looks drawn rather than written: letters and digits, and enough different ones."""
    letters, digits = any(c.isalpha() for c in value), any(c.isdigit() for c in value)
    return letters and digits and len(set(value)) >= _FEWEST_DIFFERENT


def _keys(text: str) -> Iterator[Found]:
    """Keys of known issuers, private keys, credentials in addresses, and what is said to be a password or token."""
    for hit in _ISSUED.finditer(text):
        if _random(hit[0]):
            yield Found("key", hit[0], *hit.span())
    for hit in _OPAQUE.finditer(text):
        if _random(hit[0][3:]) and any(c.isupper() for c in hit[0]):
            yield Found("key", hit[0], *hit.span())
    for hit in _PEM.finditer(text):
        body = text[hit.end() : hit.end() + 64]
        yield Found("key", hit[0] + body, *hit.span())
    for hit in _IN_URL.finditer(text):
        yield Found("key", hit[1], *hit.span())
    for hit in _ASSIGNED.finditer(text):
        if _random(hit[1]):
            yield Found("key", hit[1].rstrip("."), *hit.span(1))


# --- e-mail -------------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![\w.+%-])(\w[\w.+%'-]{0,63})@((?:[^\W_](?:[^\W_]|-(?!\.)){0,62}\.){1,6}[^\W\d_]{2,24})(?![\w@-])(?!\.\w)"
)
_NOBODYS = frozenset({"git", "noreply", "no-reply", "donotreply", "do-not-reply", "mailer-daemon", "postmaster"})
_FILES = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "py", "md"})


def _emails(text: str) -> Iterator[Found]:
    """Addresses of RFC 5321 in their usual form; neither files such as logo@2x.png nor senders that are nobody."""
    if "@" not in text:
        return
    for hit in _EMAIL.finditer(text):
        local, domain = hit[1].lower(), hit[2].lower()
        if local not in _NOBODYS and domain.rpartition(".")[2] not in _FILES and ".." not in local:
            yield Found("email", f"{local}@{domain}", *hit.span())


# --- IBAN ---------------------------------------------------------------------------------------------------

_IBAN_TABLE = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27
GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27
MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23
TN24 TR26 UA29 VA22 VG24 XK20
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_TABLE.split()}
"""Characters of an IBAN by country (the SWIFT registry)."""
_IBAN = re.compile(r"(?<!\w)([A-Z]{2})[0-9]{2}(?=[ -]?[A-Z0-9]{4})", re.IGNORECASE | re.ASCII)


def iban_valid(value: str) -> bool:
    """ISO 13616: the length of the country, and 1 modulo 97 with the first four characters at the end."""
    if len(value) != _IBAN_LENGTHS.get(value[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[Found]:
    for hit in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(hit[1].upper(), 0)
        end, value = _collect(text, hit.start(), length)
        if len(value) == length and not text[end : end + 1].isalnum() and length and iban_valid(value):
            yield Found("iban", value, hit.start(), end)


def _collect(text: str, start: int, length: int) -> tuple[int, str]:
    """So many letters and digits from `start` on, with single spaces or hyphens between; where they end."""
    value, i = "", start
    while len(value) < length and i < len(text):
        if text[i].isascii() and text[i].isalnum():
            value += text[i].upper()
        elif text[i] not in " \u00a0-" or text[i - 1] in " \u00a0-":
            break
        i += 1
    return i, value


# --- cards --------------------------------------------------------------------------------------------------

_CARD = re.compile(
    r"(?<![\w+])(?<![\w][.\-/])"
    r"(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}([ \u00a0-])"
    r"(?:[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{1,3})?|[0-9]{6}\1[0-9]{4,5}))"
    r"(?!\w)(?![.\-/ ][0-9])"
)
_NETWORKS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (400000, 499999, (13, 16, 19)),  # Visa
    (510000, 559999, (16,)),  # Mastercard
    (222100, 272099, (16,)),
    (340000, 349999, (15,)),  # American Express
    (370000, 379999, (15,)),
    (601100, 601199, (16, 19)),  # Discover
    (644000, 659999, (16, 19)),
    (300000, 305999, (14, 16)),  # Diners Club
    (360000, 369999, (14, 16, 19)),
    (380000, 399999, (14, 16, 19)),
    (352800, 358999, (16, 19)),  # JCB
    (620000, 629999, (16, 17, 18, 19)),  # UnionPay
    (500000, 509999, (13, 16, 19)),  # Maestro
    (560000, 589999, (13, 16, 19)),
    (670000, 679999, (16, 18, 19)),
)
"""First and last six digits of each card network, and the lengths that it issues (ISO/IEC 7812)."""


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, the sum a multiple of 10."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _cards(text: str) -> Iterator[Found]:
    for hit in _CARD.finditer(text):
        digits = _plain(hit[0])
        issued = any(low <= int(digits[:6]) <= high and len(digits) in sizes for low, high, sizes in _NETWORKS)
        if issued and luhn(digits) and not _called_otherwise(text, hit.start()):
            yield Found("card", digits, *hit.span())


# --- IP addresses -------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.])(?<!\w[-/])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w)(?!\.\w)(?!-\w)(?!/[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-f]{3}:[0-9a-f:]{2,34}(?![\w:.]\w)(?!\w)", re.IGNORECASE)
_A_VERSION = re.compile(
    r"(?:(?<!\w)(?:v|ver|versions?|release|build|firmware|driver|kernel|upgraded?|updated?|downgraded?|section|chapter"
    r"|clause|paragraph|rule|oid|step)(?: (?:to|from|of|is|version|no|number))?[.:]?|§) ?$",
    re.IGNORECASE,
)
_OF_ALL = tuple(
    ipaddress.IPv4Network(block)
    for block in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
)
"""Networks whose addresses many machines have, and which point at nobody."""


def _ips(text: str) -> Iterator[Found]:
    """Addresses that point at one connection: no private or local ones, and no versions."""
    for hit in _IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(hit[0])  # refuses octets above 255 and leading zeros
        except ValueError:
            continue
        shared = int(address) >= 0xE0000000 or any(address in block for block in _OF_ALL)
        if not shared and not _A_VERSION.search(text, max(0, hit.start() - WORD_REACH), hit.start()):
            yield Found("ip", str(address), *hit.span())
    for hit in _IPV6.finditer(text):
        written = hit[0].rstrip(":") if not hit[0].endswith("::") else hit[0]
        try:
            value = ipaddress.IPv6Address(written).exploded
        except ValueError:
            continue
        yield Found("ip", value, hit.start(), hit.start() + len(written))


# --- national ids -------------------------------------------------------------------------------------------


def _national_ids(text: str, locales: Iterable[Locale]) -> Iterator[Found]:
    for locale in locales:
        for one in locale.ids:
            for hit in one.pattern.finditer(text):
                before = max(0, hit.start() - WORD_REACH)
                if one.named is not None and not one.named.search(text, before, hit.start()):
                    continue
                value = _plain(hit[0])
                if one.valid(value) and not _called_otherwise(text, hit.start()):
                    yield Found("national_id", value, *hit.span())


# --- dates of birth -----------------------------------------------------------------------------------------

_YEAR_FIRST = re.compile(r"(?<![\w.,/-])([0-9]{4})([-/.])([0-9]{1,2})\2([0-9]{1,2})(?!\w)(?![-/.][0-9])")
_YEAR_LAST = re.compile(r"(?<![\w.,/-])([0-9]{1,2})([-/.]) ?([0-9]{1,2})\2 ?([0-9]{4}|[0-9]{2})(?!\w)(?![-/.][0-9])")
_DAY_FIRST = re.compile(
    r"(?<![\w.,/-])([0-9]{1,2})(?:st|nd|rd|th|er|º|°|\.)? {0,2}(?:de |of )?([^\W\d_]{3,12})\.?,? {0,2}(?:de |del )?"
    r"((?:19|20)[0-9]{2})(?!\w)"
)
_MONTH_FIRST = re.compile(
    r"(?<!\w)([^\W\d_]{3,12})\.? {1,2}([0-9]{1,2})(?:st|nd|rd|th)?,? {1,2}((?:19|20)[0-9]{2})(?!\w)"
)
_BETWEEN = r"(?:[^.;!?\n]|\.(?! [A-Z])){0,24}$"
_AFTER = re.compile(
    r"[ ,(]{0,3}(?:is|was) (?:also )?(?:my|his|her|their|our \w{3,8}'s) (?:date of birth|birth ?da(?:y|te)|dob)(?!\w)",
    re.IGNORECASE,
)


def _birth_dates(text: str, locales: Sequence[Locale]) -> Iterator[Found]:
    """Dates that the words before them, or right after, say somebody was born on."""
    words = "|".join(dict.fromkeys(locale.born for locale in locales))
    told = re.compile(rf"(?<!\w)(?:{words})(?!\w){_BETWEEN}", re.IGNORECASE)
    for hit, date in _dates(text, locales):
        before = max(0, hit.start() - WORD_REACH)
        if told.search(text, before, hit.start()) or _AFTER.match(text, hit.end()):
            yield Found("birth_date", date, *hit.span())


def _dates(text: str, locales: Sequence[Locale]) -> Iterator[tuple[re.Match[str], str]]:
    """Dates of the calendar from 1900 to 2099, as YYYY-MM-DD."""
    for hit in _YEAR_FIRST.finditer(text):
        if date := _date(hit[1], hit[3], hit[4]):
            yield hit, date
    for hit in _YEAR_LAST.finditer(text):
        year = hit[4] if len(hit[4]) == 4 else f"19{hit[4]}"
        american, other = _date(year, hit[1], hit[3]), _date(year, hit[3], hit[1])
        if date := (american or other) if locales[0].month_first and hit[2] != "." else (other or american):
            yield hit, date
    each = [f"(?P<m{i}_{j}>{m})" for i, locale in enumerate(locales) for j, m in enumerate(locale.months, 1)]
    months = re.compile("|".join(each), re.IGNORECASE)
    for pattern, name, day in ((_DAY_FIRST, 2, 1), (_MONTH_FIRST, 1, 2)):
        for hit in pattern.finditer(text):
            month = months.match(hit[name])
            number = month.lastgroup.partition("_")[2] if month and month.lastgroup else ""
            if number and (date := _date(hit[3], number, hit[day])):
                yield hit, date


def _date(year: str, month: str, day: str) -> str | None:
    try:
        found = datetime.date(int(year), int(month), int(day))
    except ValueError:
        return None
    return found.isoformat() if 1900 <= found.year < 2100 else None


# --- phones -------------------------------------------------------------------------------------------------

_ABROAD = re.compile(
    r"(?<![\w+.])(?:\+ ?|(?<![0-9] )00 ?(?=[1-9][0-9]{0,2}[ \-/(]))([1-9](?:[ \u00a0.\-/()]{0,2}[0-9]){7,14})(?![0-9])"
)
_PHONE_WORDS = re.compile(
    r"(?<!\w)(?:tel|tele?ph?one?|telefon\w{0,8}|tel[eé]fono|tél(?:éphone)?|phone|mobile?|cell(?:ulare|phone)?|móvil"
    r"|portable|handy|landline|fax|whatsapp|call(?: me)?(?: back)?|text me|reach me|ring me|sms|gsm)(?!\w)",
    re.IGNORECASE,
)
_LONGEST = {"1": 10, "33": 9, "34": 9, "44": 10, "31": 9, "49": 11, "39": 11}
"""Digits of a number after its calling code, at most."""


def _phones(text: str, locales: Iterable[Locale]) -> Iterator[Found]:
    """Numbers with a calling code, of any country; and numbers in the own form of the locales."""
    for hit in _ABROAD.finditer(text):
        found = _abroad(hit)
        if found and (hit[0][0] == "+" or not _called_otherwise(text, hit.start())):
            yield found
    for locale in locales:
        for pattern, needs_word in ((locale.grouped, False), (locale.bare, True)):
            for hit in pattern.finditer(text):
                before = max(0, hit.start() - WORD_REACH)
                if needs_word and not _PHONE_WORDS.search(text, before, hit.start()):
                    continue
                if not _called_otherwise(text, hit.start()):
                    digits = _plain(hit[0]).removeprefix(locale.trunk)
                    national = digits[1:] if locale.calling_code == "1" and len(digits) == 11 else digits
                    yield Found("phone", f"+{locale.calling_code}{national}", *hit.span())


def _abroad(hit: re.Match[str]) -> Found | None:
    """The number that begins with a calling code (E.164: at most 15 digits in all), without what follows it."""
    written = re.sub(r"\(0\)", "", hit[1])
    digits = _plain(written)
    code = next((c for c in _LONGEST if digits.startswith(c)), "")
    national = digits[len(code) :][: _LONGEST.get(code, 15)]
    if code == "1" and not re.fullmatch(r"[2-9][0-9]{2}[2-9][0-9]{6}", national):
        return None
    if len(code + national) < 9 or national.startswith("00"):
        return None
    return Found("phone", f"+{code}{national}", *hit.span())
