"""What the adapter's keys must have to do with each other."""

from __future__ import annotations

import re

from harness.spec.adapter_block import AdapterBlock
from harness.spec.draft import Draft
from harness.spec.problems import KeyPath

_PATH: KeyPath = ("model", "adapter")


def check_adapter(draft: Draft) -> None:
    """Adds the adapter's problems: keys of another type, patterns that are none, names given twice."""
    if not draft.sure("model.adapter"):
        return
    adapter, merged = draft.spec.model.adapter, draft.merged
    if adapter.type != "lora":
        for name, field in AdapterBlock.model_fields.items():
            # A resolved spec has all keys, with the values that they have by themselves.
            if name != "type" and getattr(adapter, name) != field.default:
                merged.add((*_PATH, name), f"is no parameter of {adapter.type}; only lora has it", at_key=True)
        if adapter.type == "full" and draft.spec.model.dtype != "float32":
            merged.add(("model", "dtype"), "must be float32 where all parameters are trained (adapter type: full)")
        return
    for key, patterns in (("rank_pattern", adapter.rank_pattern), ("alpha_pattern", adapter.alpha_pattern)):
        for pattern in patterns:
            if (problem := _pattern_problem(pattern)) is not None:
                merged.add((*_PATH, key, pattern), f"is no regular expression {problem}", at_key=True)
    for index, name in enumerate(adapter.also):
        if name in adapter.also[:index]:
            merged.add((*_PATH, "also", index), f'"{name}" is named twice')


def _pattern_problem(pattern: str) -> str | None:
    """Why a pattern can't be used; None: it can."""
    try:
        re.compile(pattern)
    except re.error as error:
        return f"({error})"
    except (OverflowError, RecursionError):  # q{99999999999}, or a thousand brackets
        return "that can be used: it is too large"
    try:
        re.compile(rf"(.*\.)?({pattern})$")  # as it will be used, by PEFT too
    except (re.error, OverflowError, RecursionError) as error:
        return f"that can be used within another one ({getattr(error, 'msg', 'it is too large')})"
    return None
