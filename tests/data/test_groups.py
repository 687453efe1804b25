"""Groups: a rule sees what its tier may see, of one user at a time, and can keep nothing."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from harness import plugins
from harness.data.asking import ask_each
from harness.data.groups import assign_groups, public_counts
from harness.data.holdout import is_holdout
from harness.data.sources.base import Columns, open_source
from harness.errors import ArgumentError
from harness.plugins import PluginParameters, PublicSegmenter
from tests.data.rules import SECRET, Attributes, Learner, LearnerParameters, Mixed, Rule, RuleParameters

ROOT = Path(__file__).resolve().parents[2]


def usage(**parameters):
    return plugins.segmentation.build("usage", {"measure": "records", "edges": [2, 4]} | parameters)


def attribute(**parameters):
    return plugins.segmentation.build("attribute", {"column": "plan"} | parameters)


def own(how):
    return Rule(RuleParameters(how=how))


class Public(PublicSegmenter):
    """A public rule that notes what it is shown."""

    segments = ("a", "b")
    columns = ("plan",)
    shown: ClassVar[list[object]] = []

    def __init__(self):
        super().__init__(PluginParameters())
        self.asked = 0

    def assign(self, attributes):
        self.asked += 1
        Public.shown.append((type(attributes), dict(attributes), self.asked))
        return "a" if attributes["plan"] == "free" else "b"


@pytest.fixture
def built(posts, write_jsonl, make_data, build):
    posts = [post | {"region": "eu"} for post in posts]
    return build(make_data(write_jsonl(posts), attributes=["plan", "region"]))


def test_an_own_records_rule_is_asked_of_each_user(built):
    rule = usage()
    groups = assign_groups(built, rule, rule.segments)
    assert groups.dtype == np.int16
    assert groups.tolist() == [0 if n < 2 else 1 if n < 4 else 2 for n in built.n_records]
    assert set(groups.tolist()) == {0, 1, 2}


def test_a_rule_sees_the_records_of_one_user_and_no_name(built):
    """Red when a rule is handed the corpus, another user's records, or a user's name."""
    users = [built.own_records(i) for i in range(built.n_users)]
    shown = [json.loads(answer) for answer in ask_each(own("shown"), "assign", iter(users), None)]
    assert shown == [["UserRecords", list(u.texts), list(u.token_counts), u.examples] for u in users]
    assert "user-" not in json.dumps(shown)


def test_a_rule_that_keeps_state_is_powerless(built):
    """On itself, its class and its module. Red without the fork for every user in `within._serve_users`."""
    rule = own("state")
    assert assign_groups(built, rule, rule.segments).tolist() == [0] * built.n_users
    assert Rule.seen == []


def test_the_order_of_users_changes_nobodys_group(posts, write_jsonl, make_data, build):
    rule = usage(measure="tokens", edges=[40, 90])

    def groups(lines, name):
        made = build(make_data(write_jsonl(lines, name)))
        found = assign_groups(made, rule, rule.segments)
        return {made.user_id(i): int(found[i]) for i in range(made.n_users)}

    one = groups(posts, "a.jsonl")
    assert len(set(one.values())) == 3
    assert groups(sorted(posts, key=lambda post: str(post["user"]), reverse=True), "b.jsonl") == one
    half = [post for post in posts if post["user"] < "user-20"]
    assert groups(half, "c.jsonl").items() <= one.items()  # nor does who else is there


OTHER_PROCESS = """
import json, sys
from pathlib import Path
from harness import plugins
from harness.data.groups import assign_groups
from harness.data.store import Corpus
rule = plugins.segmentation.build("usage", {"measure": "tokens", "edges": [40, 90]})
print(json.dumps(assign_groups(Corpus.load(Path(sys.argv[1])), rule, rule.segments).tolist()))
"""


def test_another_process_finds_the_same_groups(built):
    rule = usage(measure="tokens", edges=[40, 90])
    here = assign_groups(built, rule, rule.segments).tolist()
    command = [sys.executable, "-c", OTHER_PROCESS, str(built.folder)]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(there.stdout) == here


def test_a_public_rule_sees_exactly_its_columns_and_each_case_once(built):
    Public.shown = []
    groups = assign_groups(built, Public(), Public.segments)
    assert groups.tolist() == [0 if built.attributes(i)["plan"] == "free" else 1 for i in range(built.n_users)]
    assert sorted(Public.shown, key=repr) == [(dict, {"plan": "free"}, 1), (dict, {"plan": "paid"}, 1)]


PLAN = {"type": "attribute", "column": "plan", "values": ["free", "paid"]}
RECORDS = {"type": "usage", "measure": "records", "edges": [2], "names": ["few", "many"]}


def test_a_product_of_a_public_and_an_own_records_rule_puts_users_where_both_do(built):
    """Red when the public columns are those of another user, or are not handed over."""
    rule = plugins.segmentation.build("product", {"first": PLAN, "second": RECORDS})
    found = [rule.segments[place] for place in assign_groups(built, rule, rule.segments)]
    plans = [built.attributes(i)["plan"] for i in range(built.n_users)]
    assert found == [f"{plan}+{'few' if n < 2 else 'many'}" for plan, n in zip(plans, built.n_records, strict=True)]
    assert len(set(found)) == 4


def test_somebodys_mixed_rule_sees_its_columns_in_a_room_and_no_others(built):
    """Red when all public columns are handed over, or none reaches the room."""
    rule = Mixed(PluginParameters())
    groups = assign_groups(built, rule, rule.segments)
    assert groups.tolist() == [0 if built.attributes(i)["plan"] == "free" else 1 for i in range(built.n_users)]
    assert set(groups.tolist()) == {0, 1}


def test_a_mixed_rule_may_not_read_an_undeclared_column(posts, write_jsonl, make_data, build):
    """Red when columns are checked for public rules alone."""
    corpus = build(make_data(write_jsonl(posts), attributes=[]))
    with pytest.raises(ArgumentError, match=r'the column "plan" is not among data\.attributes'):
        assign_groups(corpus, Mixed(PluginParameters()), Mixed.segments)


def test_a_rule_that_declares_no_columns_sees_none(built):
    """Red when every own-records rule is handed public columns."""
    rule = Attributes(PluginParameters())
    assert assign_groups(built, rule, rule.segments).tolist() == [0] * built.n_users


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("raises", "raised an error"),
        ("exits", "raised an error"),
        ("names", "named a segment that it had not announced"),
        ("number", "named a segment that it had not announced"),
        ("list", "named a segment that it had not announced"),
    ],
)
def test_a_rule_that_fails_carries_no_text_out(how, problem, write_jsonl, make_data, build, tmp_path):
    made = build(make_data(write_jsonl([{"user": "ann", "text": SECRET}])))
    rule = own(how)
    with pytest.raises(ArgumentError) as caught:
        assign_groups(made, rule, rule.segments, private_dir=tmp_path / "private")
    assert str(caught.value).endswith(f"Rule {problem}; see private/plugin-errors.log")
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    log = tmp_path / "private" / "plugin-errors.log"
    assert problem in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    with pytest.raises(ArgumentError, match=f"Rule {problem}$"):
        assign_groups(made, rule, rule.segments)


def test_a_rule_that_no_other_process_can_make_is_refused(built):
    class Hidden(Rule):
        pass

    with pytest.raises(ArgumentError, match="Hidden must be a class of a module"):
        assign_groups(built, Hidden(RuleParameters()), ("first",))


def test_a_rule_that_is_learned_needs_a_session(built):
    rule = Learner(LearnerParameters())
    with pytest.raises(ArgumentError, match="Learner needs a private session"):
        assign_groups(built, rule, rule.segments)


@pytest.mark.parametrize("segments", [(), ("a", "a"), [str(i) for i in range(40_000)]])
def test_segments_must_be_a_few_different_ones(segments, built):
    with pytest.raises(ArgumentError, match="must announce between 1 and 32767 different segments"):
        assign_groups(built, usage(), segments)


def test_an_undeclared_column_is_refused(posts, write_jsonl, make_data, build):
    data = make_data(write_jsonl(posts))
    with pytest.raises(ArgumentError, match=r'the column "plan" is not among data\.attributes'):
        assign_groups(build(data), attribute(values=["free"]), ("free", "other"))
    with pytest.raises(ArgumentError, match=r'the column "plan" is not among data\.attributes'):
        public_counts(open_source(data, Path()), Columns.of(data), data, attribute())


# --- what `plan` counts -------------------------------------------------------------------------------------


def counts(data, segmenter):
    return public_counts(open_source(data, Path()), Columns.of(data), data, segmenter)


def test_plan_counts_distinct_users_without_reading_a_record(posts, write_jsonl, make_data, monkeypatch):
    data = make_data(write_jsonl(posts), attributes=["plan"])
    monkeypatch.setattr("harness.data.sources.jsonl.Jsonl.records", None)  # only the public door is left
    monkeypatch.setattr("harness.data.sources.files.make_record", None)
    found = counts(data, attribute())
    train = [u for u in range(40) if not is_holdout(f"user-{u:02d}", "made", 0.25)]
    assert (found.users_train, found.users_holdout) == (len(train), 40 - len(train))
    paid = sum(u % 3 == 0 for u in train)
    assert found.segments == {"free": len(train) - paid, "paid": paid, "other": 0}
    assert found.domain == {"plan": ("free", "paid")}
    assert found.segmenter.segments == ("free", "paid", "other")


def test_an_own_records_rule_is_not_counted(posts, write_jsonl, make_data):
    rule = usage()
    found = counts(make_data(write_jsonl(posts)), rule)
    assert (found.segments, found.domain, found.segmenter) == (None, {}, rule)


def test_everybody_is_in_the_segment_of_no_segmentation(posts, write_jsonl, make_data):
    found = counts(make_data(write_jsonl(posts)), plugins.segmentation.build("none", {}))
    assert found.segments == {"everyone": found.users_train}
    assert found.domain == {}


def test_the_plan_and_the_corpus_agree_on_users_and_segments(write_jsonl, make_data, build):
    lines = [
        {"user": f"u{i % 30}", "text": "" if i % 4 == 0 else f"words {i}", "plan": ["a", "b", None][i % 30 % 3]}
        for i in range(60)
    ]
    lines += [{"user": "u1", "text": "", "plan": "a"}, {"user": "silent", "text": None, "plan": "c"}]
    data = make_data(write_jsonl(lines), attributes=["plan"])
    planned, made = counts(data, attribute()), build(data)
    assert planned.users_train + planned.users_holdout == made.n_users == 31
    assert planned.users_holdout == len(made.users(holdout=True))
    names = planned.segmenter.segments
    assert names == ("a", "b", "c", "other")
    groups = assign_groups(made, planned.segmenter, names)
    in_training = np.bincount(groups[made.users(holdout=False)], minlength=len(names))
    assert dict(zip(names, in_training.tolist(), strict=True)) == planned.segments


def test_real_text_end_to_end(make_data, build):
    data = make_data("x", source={"type": "shakespeare"}, name="plays", max_tokens=128, attributes=["genre"])
    rule = attribute(column="genre")
    planned = counts(data, rule)
    assert planned.users_train + planned.users_holdout == 1426
    assert len(planned.domain["genre"]) == 6
    made = build(data)
    assert (made.n_users, made.bad_records, int(made.n_records.sum())) == (1426, 0, 31354)
    hamlet = next(i for i in range(made.n_users) if made.user_id(i) == "hamlet/HAMLET")
    assert made.n_records[hamlet] == 359
    assert made.attributes(hamlet) == {"genre": "tragedies"}
    groups = assign_groups(made, planned.segmenter, planned.segmenter.segments)
    assert planned.segmenter.segments[groups[hamlet]] == "tragedies"
