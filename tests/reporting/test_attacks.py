"""What a report says of an audit: the verdict in plain words, each number from its place, and nobody's statistics."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.reporting import report
from harness.reporting.attack_charts import measured
from harness.reporting.attacks import attacks
from harness.reporting.audited import audited, failed
from harness.reporting.comparing import compare
from harness.reporting.model_card import model_card
from harness.reporting.records import RunRecord, read_run
from harness.reporting.report import write_report
from tests.reporting import audits
from tests.reporting.conftest import SPEC, made_metrics, made_not_private, made_plan, made_privacy
from tests.reporting.test_report import BAD, _paths, words

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes an audited run; of public data unless it is said."""

    def write(document: dict[str, Any], **options: Any) -> Path:
        return audits.audited_run(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", document, **options)

    return write


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def section(html: str) -> str:
    """The attacks' part of a page."""
    found = re.search(r'<section class="chapter" id="attacks">.*?</section>', html, flags=re.DOTALL)
    return found.group() if found else ""


def record(document: dict[str, Any], privacy: dict[str, Any] | None = None, **plan: Any) -> RunRecord:
    return RunRecord(
        SPEC, made_plan() | plan, privacy or made_privacy(), tuple(made_metrics()), audit=document, samples={}
    )


def shown(document: dict[str, Any], **options: Any) -> dict[str, Any]:
    found = attacks(record(document, **options))
    assert found is not None
    return found


def one_test(**changes: Any) -> dict[str, Any]:
    """A document with one test of ε: 100 of 200 guesses, 2 claimed."""
    test = {
        "kind": "text", "score": "log ratio", "group": None, "canaries": 400, "guesses": 200, "correct": 137,
        "bound": 0.5, "ceiling": 3.0, "confidence": 0.95, "claimed": 2.0, "verdict": "consistent",
    }  # fmt: skip
    return {"verdict": "consistent", "confidence": 0.95, "planted": [], "one_run": [test | changes]}


def test_an_unaudited_run_has_no_such_chapter(run_dir: Path) -> None:
    html = page(run_dir)
    assert section(html) == ""
    assert 'id="words"' not in html
    assert 'id="audit-failed"' not in html


# --- the verdict ----------------------------------------------------------------------------------------------


def test_nothing_found_is_no_proof(make: Make) -> None:
    """Break: leave out the groups of which nothing could have been found."""
    told = words(section(page(make(audits.consistent()))))
    assert "Nothing was found above what is claimed, and more could have been found about users of “some” and" in told
    assert "About all users together and users of “few” no test could have found a violation" in told
    assert "ε ≥ 0.28, for any user, where 8.00 is claimed: 732 of 1,200 guesses about direction canaries" in told
    assert "would have shown ε ≥ 4.11 for users of “many”, where 2.00 is claimed" in told
    assert "this is no proof of the claim" in told


def test_no_audit_is_ever_called_passed_or_safe(make: Make) -> None:
    for document in (audits.consistent(), audits.inconclusive(), audits.violated()):
        assert not re.search(r"\b(pass(ed)?|safe|proven|secure)\b", words(section(page(make(document)))))


def test_a_ceiling_below_the_claim_says_nothing(make: Make) -> None:
    """Break: show the file's verdict whatever the ceilings are."""
    html = page(make(audits.inconclusive()))
    told = words(section(html))
    assert "Inconclusive: no test could have found a violation." in told
    assert "Nothing was found above what is claimed" not in told
    assert "That nothing was found says nothing about the claim" in told
    assert shown(one_test(ceiling=1.9, verdict="inconclusive"))["verdict"] == "inconclusive"


def test_a_violation_is_the_loudest_thing(make: Make) -> None:
    """Break: the alarm left to the chapter, or the plain words of a guarantee that does not hold."""
    html = page(make(audits.violated()))
    assert "<title>AUDIT FAILED · shakespeare-usage" in html
    told = words(html)
    assert "AUDIT FAILED ε of users of “many” is at least 2.70, and 2.00 is claimed. This holds with 95 % c" in told
    assert told.index("AUDIT FAILED ε of") < told.index("run report") < told.index("Claimed, and refuted:")
    assert "In plain words" not in told
    assert "is right at most" not in told
    assert "hero-alarm" in html
    assert "The claim is refuted: ε of users of “many” is at least 2.70" in words(section(html))


@pytest.mark.parametrize(
    "document",
    [
        one_test(bound=2.01),
        one_test(verdict="violated"),
        one_test() | {"verdict": "violated"},
        {"verdict": "violated"},
        one_test(bound=7.9932, claimed=50.0, ceiling=60.0),  # the run claims 7.9931 for everybody
    ],
)
def test_whatever_part_of_a_file_tells_of_a_violation_is_believed(document: dict[str, Any]) -> None:
    """Break: ask the verdict of the file alone."""
    found = shown(document)
    assert found["verdict"] == "violated"
    assert found["alarm"].startswith(("ε of any user is at least", "An attack measured more than is claimed."))


@pytest.mark.parametrize(
    "document",
    [
        one_test(ceiling=1.9),
        one_test(ceiling=None),
        one_test(bound="0.5"),
        one_test() | {"verdict": None},
        one_test() | {"verdict": "inconclusive"},
    ],
)
def test_a_file_that_says_less_than_it_should_is_not_consistent(document: dict[str, Any]) -> None:
    """Break: "consistent" unless something was found."""
    assert shown(document)["verdict"] == "inconclusive"


def test_a_bound_and_a_claim_are_told_apart() -> None:
    """7.99321 and 7.9931 are both 7.99 and both 8.00. Break: two decimals always."""
    assert failed(audited(record(one_test(bound=7.99321, claimed=7.9931)))) == (
        "ε of any user is at least 7.9932, and 7.9931 is claimed."
    )


def test_where_nothing_is_claimed_nothing_is_refuted(make_run: Callable[..., Path]) -> None:
    plan, privacy, metrics = made_not_private()
    bare = RunRecord(SPEC, plan, privacy, tuple(metrics), audit=one_test(claimed=None, verdict="inconclusive"))
    found = attacks(bare)
    assert found is not None
    assert found["alarm"] is None
    assert found["lead"] == "Nothing is claimed, so no test can refute it; what is measured holds all the same."
    assert found["sentences"][0] == (
        "The largest lower bound of a test is ε ≥ 0.50, for any user: 137 of 200 guesses about text canaries were "
        "right."
    )


def test_without_a_test_of_epsilon_there_is_no_verdict() -> None:
    found = shown({"extraction": audits.EXTRACTION})
    assert (found["verdict"], found["tests"], found["chart"]) == (None, [], None)
    assert found["lead"].startswith("No lower bound on ε was measured")


# --- numbers --------------------------------------------------------------------------------------------------


def test_each_number_comes_from_its_place() -> None:
    """Break: bound for ceiling, canaries for guesses."""
    (part,) = shown(one_test(bound=0.5678, ceiling=3.4567, group="some"))["tests"]
    assert part["title"] == "text canaries, by how much likelier training made their text"
    assert part["rows"] == [
        {
            "group": "some", "canaries": "400", "guesses": "200", "correct": "137", "bound": "0.56",
            "ceiling": "3.45", "claimed": "2.00", "verdict": "consistent",
        }
    ]  # fmt: skip


def test_all_bounds_hold_together_by_the_union_bound() -> None:
    """Break: the confidence that the file states for all, though its tests have less."""
    assert shown(audits.consistent())["confidence"].startswith(
        "All 16 bounds hold together with 95 % confidence; for that, each test by itself has 99.6 % (Bonferroni)."
    )
    two = one_test()
    two["one_run"] *= 2
    assert "hold together with 90 % confidence" in shown(two)["confidence"]
    assert shown(one_test(confidence=None))["confidence"] == ""


def test_made_users_are_in_the_model() -> None:
    found = shown(audits.consistent())["canaries"]
    assert found.startswith("4,821 made users (canaries), whom nobody is behind, were planted for this: 2,400 hold a d")
    assert "21 hold a secret code" in found
    assert "those that were are in the model" in found
    assert shown(one_test())["canaries"] == ""


def test_the_chart_has_a_row_for_each_group(make: Make) -> None:
    html = section(page(make(audits.violated())))
    assert "all users: ≥ 0.76 of 8.00; few: ≥ 0.54 of 8.00; some: ≥ 0.49 of 4.00; many: ≥ 2.70 of 2.00." in html
    assert "many, direction canaries: at most 4.11 could be found" in html
    # Above the claim in the colour of an alarm, and nothing else is.
    drawn = html[html.index('id="audit-760-t"') : html.index('id="audit-340-t"')]
    assert re.findall(r'<circle [^>]*style="--c:var\(--no\)"><title>(.*?)<', drawn) == [
        "many, direction canaries, likelihood ratio: ε ≥ 2.70"
    ]


def test_secrets(make: Make) -> None:
    """Break: those left out for those planted."""
    part = shown(audits.consistent())["extraction"]
    assert part["rows"] == [
        ["in the training", "11", "2.31 (1.22 to 3.41)", "1.19", "0 % (0 to 28 %)", "9 % (0 to 41 %)"],
        ["left out", "9", "1.39 (0.00 to 2.89)", "1.61", "0 % (0 to 34 %)", "0 % (0 to 34 %)"],
    ]
    assert part["sentence"].startswith("Codes that were in the training don’t clearly stand out")
    clear = copy.deepcopy(audits.EXTRACTION)
    clear["planted"] |= {"exposure": 8.0, "exposure_interval": [6.0, 10.0]}
    told = shown({"extraction": clear})["extraction"]["sentence"]
    assert told == (
        "The model gives planted codes away: those that were in the training stand out (8.00 against 1.39 bits of "
        "exposure)."
    )


def test_words_in_updates() -> None:
    """Break: with noise for without; the largest cohort for the smallest."""
    part = shown(audits.consistent())["reconstruction"]
    assert part["sentence"] == (
        "Of a user’s words, an update of one user alone gives away 97 % without noise and 5 % with the run’s; naming "
        "the most frequent words finds 11 %."
    )
    assert part["rows"][2] == ["16", "8", "40 % (31 to 49 %)", "11 % (2 to 20 %)", "44 %", "0.3 %"]
    reason = {"looked_at": None, "shares": [], "reason": "does not apply: nothing linear is trained"}
    none = shown({"reconstruction": reason})["reconstruction"]
    assert none["sentence"] == "This attack does not apply: nothing linear is trained."


def test_the_made_documents_are_like_real_ones() -> None:
    """What tests here are made with has the keys that the attacks write."""
    from harness.auditing.extraction import Extraction, Summary
    from harness.auditing.reconstruction import Reconstruction, Share

    summary = Summary(1, 1.0, (0.0, 2.0), 1.0, 0.0, (0.0, 1.0), 0.0, (0.0, 1.0))
    written = Extraction((), summary, summary, 1, 9.0, 0.95).document()
    assert audits.EXTRACTION.keys() == written.keys()
    assert audits.EXTRACTION["planted"].keys() == written["planted"].keys()
    share = Share(1, 0.0, 1, 0.5, (0.0, 1.0), 0.0, 0.1)
    updates = Reconstruction("embedding", (share,), None, 0.95).document()
    assert audits.RECONSTRUCTION.keys() == updates.keys()
    assert audits.RECONSTRUCTION["shares"][0].keys() == updates["shares"][0].keys()


# --- users ----------------------------------------------------------------------------------------------------


def test_of_public_data_users_are_told(make: Make) -> None:
    html = section(page(make(audits.consistent())))
    assert "0.638" in html
    told = words(html)
    assert "better than by a coin (AUC 0.638, " in told
    assert "The attacker has texts of each user that the training left out." in told
    assert "Not known of many: fewer than 10 trained or held-out users." in told
    assert "found at 1 % false alarms found at 0.1 % false alarms" in told
    assert "needs 1000 held-out users or more" in told
    assert "all users 200 120 0.638" in told


def test_of_private_data_only_where_it_lies(make: Make) -> None:
    told = words(section(page(make(audits.of_private_data(), visibility="private"))))
    assert "What it found is private, and lies in private/audit.json alone." in told
    assert "AUC" not in told


@pytest.mark.parametrize(
    ("in_privacy", "in_spec"), [("private", "private"), ("private", "public"), ("public", "private"), (None, "public")]
)
def test_statistics_of_private_users_are_never_shown(in_privacy: object, in_spec: str) -> None:
    """Even where the file has them. Break: believe the file; ask one of the two declarations alone."""
    told = made_privacy() | {"data": {"name": "mails", "visibility": in_privacy}}
    spec = SPEC | {"data": SPEC["data"] | {"visibility": in_spec}}
    leaky = RunRecord(spec, made_plan(), told, (), audit=audits.consistent())
    html = section(report.render(leaky))
    assert "take them out before the run’s folder is shared" in html
    for number in ("0.638", "AUC", "false alarms", "fewer than 10"):
        assert number not in html


def test_nothing_private_is_opened(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(audits.of_private_data(), visibility="private")
    (folder / "private" / "audit.json").write_text("no JSON")
    read_run(folder)
    assert "0.638" not in page(folder)


# --- hostile files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, "text", -1.0, float("nan"), 1e308])
def test_any_value_may_be_missing_or_of_another_kind(wrong: object) -> None:
    document = audits.consistent()
    # One test, one user's row and one share stand for all.
    document["one_run"] = document["one_run"][2:3]
    document["planted"] = document["planted"][:1]
    document["user_inference"]["groups"].pop("some")
    document["user_inference"]["groups"].pop("many")
    document["reconstruction"]["shares"] = document["reconstruction"]["shares"][:2]
    places = _paths(document)
    assert len(places) > 80
    plain = record(document)
    for place in places:
        changed = copy.deepcopy(document)
        holder: Any = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = wrong
        found = attacks(RunRecord(plain.spec, plain.plan, plain.privacy, (), audit=changed))
        assert found is not None, place
        for part in ("chart", "inference", "extraction", "reconstruction"):
            assert "nan" not in str(found[part]).lower(), (place, part)
        assert len(str(found["chart"])) < 40_000
    html = report.render(record({key: wrong for key in document}))
    assert html.rstrip().endswith("</html>")


def test_texts_are_inert(make: Make) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return BAD if isinstance(value, str) and value not in ("gradient", "text") else value

    document = poison(audits.violated())
    document["user_inference"]["groups"][BAD] = document["user_inference"]["groups"].pop("few")
    document["reconstruction"] |= {"reason": BAD}
    samples = {"samples": [{"prompt": BAD, "base": BAD, "tuned": f"</p>{BAD}"}]}
    html = page(make(document, samples=samples))
    assert "&lt;script&gt;" in section(html)
    assert "<script" not in html
    assert "<img" not in html


def test_an_interval_is_cut_at_nothing_and_kept_in_order() -> None:
    assert measured({"x": 1.0, "i": [-0.5, 2.0]}, "x", "i") is not None
    assert getattr(measured({"x": 1.0, "i": [-0.5, 2.0]}, "x", "i"), "interval", None) == (0.0, 2.0)
    for ends in ([2.0, 1.0], [1.0], None, ["a", "b"], [0.0, float("inf")]):
        assert getattr(measured({"x": 1.0, "i": ends}, "x", "i"), "interval", 0) is None
    assert measured({"x": True}, "x", "i") is None


# --- elsewhere ------------------------------------------------------------------------------------------------


def test_the_model_card_names_the_audit(make: Make, run_dir: Path) -> None:
    card = model_card(make(audits.consistent()))
    assert (
        "Attacks on this model:\n\n- Nothing was found above what is claimed, and more could have been found; that is "
        "no proof. Largest lower bound measured: ε ≥ 0.28.\n- 4,821 made users (canaries) were planted" in card
    )
    assert "- differential-privacy" in card
    assert "Attacks" not in model_card(run_dir)


def test_the_model_card_of_a_refuted_run_begins_with_it(make: Make) -> None:
    """Break: the tag that model hubs show left as it was."""
    card = model_card(make(audits.violated()))
    told = "> **AUDIT FAILED: NOT PRIVATE.** ε of users of “many” is at least 2.70, and 2.00 is claimed."
    assert told in card
    assert card.index(told) < card.index("## Privacy")
    assert "differential-privacy\n" not in card.split("---")[1]
    assert "- not-private\n- audit-failed" in card


def test_comparing_runs_says_what_was_measured(make: Make, run_dir: Path) -> None:
    from harness.cli.runs import _side_by_side

    found = compare(make(audits.violated()), run_dir)
    assert [run["verdict"] for run in found["runs"]] == ["violated", None]
    assert found["runs"][0]["audited"] == pytest.approx(2.704, abs=1e-3)
    assert any(
        line.split() == ["ε", "measured,", "at", "least", "2.7", "(VIOLATED)", "-"] for line in _side_by_side(found)
    )
    assert not any("measured" in line for line in _side_by_side(compare(run_dir, run_dir)))
