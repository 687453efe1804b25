"""Packing: every token of a user ends in exactly one of their examples, and in nobody else's."""

from __future__ import annotations

import logging

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.data.packing import MIN_TOKENS, pack, tokenize

EOS = 999
TEXTS = st.lists(st.lists(st.integers(0, 998), max_size=40), max_size=12)


@given(TEXTS, st.integers(2, 50))
def test_no_token_is_lost_added_or_moved(texts, max_tokens):
    stream = [token for text in texts for token in (*text, EOS)]
    packed = [example.tolist() for example in pack(texts, eos=EOS, max_tokens=max_tokens)]
    joined = [token for example in packed for token in example]
    tail = len(stream) % max_tokens
    assert joined == (stream[:-1] if tail == 1 else stream)  # only a tail too short to learn from goes


@given(TEXTS, st.integers(2, 50))
def test_examples_are_full_but_for_the_last(texts, max_tokens):
    packed = pack(texts, eos=EOS, max_tokens=max_tokens)
    assert all(len(example) == max_tokens for example in packed[:-1])
    assert all(MIN_TOKENS <= len(example) <= max_tokens for example in packed)
    assert all(example.dtype == np.int32 for example in packed)


def test_each_text_ends_with_the_end_of_text_token():
    assert [e.tolist() for e in pack([[1, 2], [3]], eos=0, max_tokens=8)] == [[1, 2, 0, 3, 0]]
    assert [e.tolist() for e in pack([[1, 2], [3, 4]], eos=0, max_tokens=4)] == [[1, 2, 0, 3], [4, 0]]
    assert [e.tolist() for e in pack([[1, 2], [3]], eos=0, max_tokens=4)] == [[1, 2, 0, 3]]
    assert pack([], eos=0, max_tokens=8) == []
    assert pack([[]], eos=0, max_tokens=8) == []


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=6))
def test_tokens_of_a_text_do_not_depend_on_the_batch(tokenizer, texts):
    alone = [tokenize(tokenizer, [text])[0].tolist() for text in texts]
    assert [tokens.tolist() for tokens in tokenize(tokenizer, texts)] == alone
    assert [tokenizer.decode(tokens) for tokens in alone] == texts


def test_a_text_of_any_length_is_kept_whole_and_said_nothing_about(tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(
        logging.getLogger("transformers"), "level", logging.WARNING
    )  # another test may have quietened it
    logging.getLogger("transformers").manager._clear_cache()
    long = "x" * 1000
    assert tokenizer.model_max_length < len(long)
    tokenizer.deprecation_warnings.clear()  # the warning comes once
    assert len(tokenize(tokenizer, [long, "y"])[0]) == len(long)
    assert caplog.records == []
    tokenizer([long], verbose=True)
    assert "longer than the specified maximum" in caplog.text  # what would have been said
