"""What differs between countries: phone numbers, national ids, and the words for a birth.

Each entry is a public constant. Numbers without check digits, or whose check passes one number in eleven, are believed
only where the text says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

WORD_REACH = 40
"""Characters before a number in which the word that says what it is may stand."""


@dataclass(frozen=True)
class NationalId:
    """A national id.

    Attributes:
        pattern: Its form, also with the usual spaces; bounded in length.
        valid: Whether its digits and letters (upper case, no separators) keep its checksum or its ranges.
        named: What must stand before it; None: its form and checksum are enough.
    """

    pattern: re.Pattern[str]
    valid: Callable[[str], bool]
    named: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Locale:
    """What a country's users write.

    Attributes:
        calling_code: Of the country, for numbers in its own form.
        trunk: What a call from abroad leaves out at the beginning.
        grouped: A phone number in groups as hardly anything else is written; needs no word before it.
        bare: A phone number in any other form; needs a word for a phone before it.
        ids: National ids.
        born: Words that announce a date of birth.
        months: The twelve months, each by its possible beginnings.
        month_first: Whether 3/4 is the 4th of March.
    """

    calling_code: str
    trunk: str
    grouped: re.Pattern[str]
    bare: re.Pattern[str]
    ids: tuple[NationalId, ...]
    born: str
    months: tuple[str, ...]
    month_first: bool = False


# --- checks -------------------------------------------------------------------------------------------------


def us_ssn(number: str) -> bool:
    """US social security numbers by ranges (SSA: no area 000, 666 or 9xx, no group 00, no serial 0000)."""
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def gb_nino(number: str) -> bool:
    """UK national insurance numbers by prefix (HMRC, National Insurance Manual NIM39110)."""
    return number[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def gb_nhs(number: str) -> bool:
    """NHS numbers: modulus 11 with weights 10 to 2."""
    check = 11 - sum((10 - i) * int(d) for i, d in enumerate(number[:9])) % 11
    return check != 10 and check % 11 == int(number[9])


def de_tax_id(number: str) -> bool:
    """German tax ids: one digit of the first ten is there two or three times, then ISO 7064 mod 11,10."""
    counts = sorted((number[:10].count(d) for d in set(number[:10])), reverse=True)
    if number[0] == "0" or counts[0] not in (2, 3) or counts[1:2] == [2]:
        return False
    product = 10
    for digit in number[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(number[10])


def fr_nir(number: str) -> bool:
    """French NIR: 97 less the first 13 digits modulo 97; 2A and 2B (Corsica) count as 19 and 18."""
    body = number[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(body) % 97 == int(number[13:])


def es_dni(number: str) -> bool:
    """Spanish DNI and NIE: a letter by modulus 23; X, Y, Z at the front count as 0, 1, 2."""
    digits = number[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


_ODD_LETTERS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
"""What a letter (or digit, as the first ten) counts in an odd place of a codice fiscale."""


def it_fiscal_code(number: str) -> bool:
    """Italian codice fiscale: a letter by modulus 26 (decree of 23 December 1976, article 12)."""
    values = [int(c) if c.isdigit() else ord(c) - 65 for c in number[:15]]
    total = sum(_ODD_LETTERS[value] for value in values[::2]) + sum(values[1::2])
    return chr(65 + total % 26) == number[15]


def nl_bsn(number: str) -> bool:
    """Dutch BSN: the elfproef, weights 9 to 2 and -1."""
    total = sum(w * int(d) for w, d in zip((9, 8, 7, 6, 5, 4, 3, 2, -1), number, strict=True))
    return total % 11 == 0 and number.strip("0") != ""


# --- countries ----------------------------------------------------------------------------------------------


def _form(pattern: str) -> re.Pattern[str]:
    """A form that stands by itself: no digit or letter on either side, and no part of a longer row of digits."""
    return re.compile(
        rf"(?<![\w+])(?<![\w][.\-/])(?<![0-9] )(?:{pattern})(?![\w])(?![.\-/][0-9])(?! [0-9]{{3}})", re.IGNORECASE
    )


def _named(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


_ENGLISH = r"born|birth ?date|date of birth|birth ?day(?! (?:party|gift|present|card|cake|dinner))|d\.?o\.?b|birth"
_ENGLISH_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

LOCALES: dict[str, Locale] = {
    "us": Locale(
        calling_code="1",
        trunk="",
        grouped=_form(r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}"),
        bare=_form(r"(?:1[ ]?)?[2-9][0-9]{2}[ ]?[2-9][0-9]{2}[ ]?[0-9]{4}"),
        ids=(
            NationalId(_form(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"), us_ssn),
            NationalId(_form(r"[0-9]{3} ?[0-9]{2} ?[0-9]{4}"), us_ssn, _named("ssn|social security")),
        ),
        born=_ENGLISH,
        months=_ENGLISH_MONTHS,
        month_first=True,
    ),
    "gb": Locale(
        calling_code="44",
        trunk="0",
        grouped=_form(
            r"07[0-9]{3}[ -][0-9]{3}[ -]?[0-9]{3}|\(?02[0-9]\)?[ -][0-9]{4}[ -]?[0-9]{4}"
            r"|\(?01[0-9]{2,3}\)?[ -][0-9]{3}[ -]?[0-9]{3,4}"
        ),
        bare=_form(r"0[1-37][0-9]{8,9}"),
        ids=(
            NationalId(_form(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:[0-9]{2} ?){3}[A-D]"), gb_nino),
            NationalId(_form(r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}"), gb_nhs, _named("nhs")),
        ),
        born=_ENGLISH,
        months=_ENGLISH_MONTHS,
    ),
    "de": Locale(
        calling_code="49",
        trunk="0",
        grouped=_form(
            r"\(?01[567][0-9]{1,2}\)?[ /-][0-9]{3,4}[ ]?[0-9]{3,5}|\(?0[2-9][0-9]{1,3}\)?[ /-][0-9]{3,5}[ ]?[0-9]{2,4}"
        ),
        bare=_form(r"0[1-9][0-9]{7,10}"),
        ids=(
            NationalId(
                _form(r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}"),
                de_tax_id,
                _named(r"steuer-?id(?:nr)?|steuerliche identifikationsnummer|steueridentifikationsnummer|idnr|tax id"),
            ),
        ),
        born=r"geboren|geb\.|geburtsdatum|geburtstag",
        months=("jan|jän", "feb", "mär|maer", "apr", "mai", "jun", "jul", "aug", "sep", "okt", "nov", "dez"),
    ),
    "fr": Locale(
        calling_code="33",
        trunk="0",
        grouped=_form(r"0[1-9](?:[ .-][0-9]{2}){4}"),
        bare=_form(r"0[1-9][0-9]{8}"),
        ids=(
            NationalId(
                _form(
                    r"[1-4] ?[0-9]{2} ?(?:0[1-9]|1[0-2]|[2-9][0-9]) ?(?:[0-9]{2}|2[AB])"
                    r" ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"
                ),
                fr_nir,
            ),
        ),
        born=r"née?(?:\(e\))?|naissance|anniversaire",
        months=("janv", "f[ée]v", "mars", "avr", "mai", "juin", "juil", "ao[uû]", "sep", "oct", "nov", "d[ée]c"),
    ),
    "es": Locale(
        calling_code="34",
        trunk="",
        grouped=_form(r"[679][0-9]{2}-[0-9]{3}-[0-9]{3}|[679][0-9]{2}(?: [0-9]{2}){3}"),
        bare=_form(r"[679][0-9]{2}[ .]?[0-9]{3}[ .]?[0-9]{3}"),
        ids=(NationalId(_form(r"(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z]"), es_dni),),
        born=r"nacid[oa]|nac[ií]|nacimiento|cumpleaños",
        months=("ene", "feb", "mar", "abr", "may", "jun", "jul", "ago", "sep", "oct", "nov", "dic"),
    ),
    "it": Locale(
        calling_code="39",
        trunk="",
        grouped=_form(r"3[0-9]{2}-[0-9]{3}[ -]?[0-9]{4}|0[0-9]{1,3}[ /-][0-9]{3,4}[ ]?[0-9]{3,4}"),
        bare=_form(r"(?:3[0-9]{2}|0[0-9]{1,3})[ ]?[0-9]{3}[ ]?[0-9]{3,4}"),
        ids=(
            NationalId(
                _form(r"[A-Z]{3} ?[A-Z]{3} ?[0-9]{2}[ABCDEHLMPRST][0-9]{2} ?[A-Z][0-9]{3}[A-Z]"),
                it_fiscal_code,
            ),
        ),
        born=r"nat[oa]|nascita|compleanno",
        months=("gen", "feb", "mar", "apr", "mag", "giu", "lug", "ago", "set", "ott", "nov", "dic"),
    ),
    "nl": Locale(
        calling_code="31",
        trunk="0",
        grouped=_form(r"06[ -][0-9]{8}|06[ -]?(?:[0-9]{2}[ -]){3}[0-9]{2}|0[1-9][0-9]{1,2}[ -][0-9]{6,7}"),
        bare=_form(r"0[1-9][0-9]{8}"),
        ids=(
            NationalId(
                _form(r"[0-9]{3}[ .]?[0-9]{3}[ .]?[0-9]{3}|[0-9]{4}[ .][0-9]{2}[ .][0-9]{3}"),
                nl_bsn,
                _named(r"bsn|burgerservicenummer|sofi-?nummer"),
            ),
        ),
        born=r"geboren|geboortedatum|verjaardag",
        months=("jan", "feb", "maart|mrt", "apr", "mei", "jun", "jul", "aug", "sep", "okt", "nov", "dec"),
    ),
}
