"""The commented spec that ``uudp init`` writes."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_COLUMN = 44
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Starter:
    """What a starter spec says that is not the same for everybody. Of the data only names of columns.

    Attributes:
        name: Of the spec and of the data set.
        source: The block ``data.source``.
        user: The user column.
        form: ``text``, ``pair`` or ``messages``.
        text: The column of the text, of a pair's prompt, or of the messages.
        why_user: Why this user column, in a few words.
        why_text: The same of what is learnt.
        completion: The column of a pair's completion.
        candidates: Columns that could be declared public attributes.
        encoding_guessed: Whether the encoding in `source` is only likely.
        runner_up: The column that is the next best guess of the user.
        time: The column that says when a record was written, if one plainly does.
    """

    name: str
    source: Mapping[str, str]
    user: str
    form: str
    text: str
    why_user: str
    why_text: str
    completion: str | None = None
    candidates: Sequence[str] = ()
    encoding_guessed: bool = False
    runner_up: str | None = None
    time: str | None = None


def scalar(text: str) -> str:
    """A text as a YAML scalar: plain where that is safe, else quoted."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False).replace("§", "\\u00a7")  # which means something else below


def starter_spec(starter: Starter) -> str:
    """The text of the spec."""
    s = starter
    return _aligned(f"""\
# Made by `uudp init`. Check the lines marked with (?), then:
#   uudp validate {s.name}.yaml     the spec alone
#   uudp plan {s.name}.yaml         groups, noise and ε, before a model reads anything
#   uudp run {s.name}.yaml          trains, evaluates and reports
# `uudp schema` prints the JSON schema with which an editor completes and checks these keys.
version: 1
name: {scalar(s.name)}
seed: 0 § initialisation only; cohorts and noise come from a secret key

data:
  name: {scalar(s.name)} § the data set: runs on the same data should say the same name
{_source(s)}
  user: {scalar(s.user)} § (?) {s.why_user}{_runner_up(s)};
§ says who a record belongs to: all records of one user are protected together
{_learnt(s)}
{_time(s)}{_attributes(s)}
  max_tokens: 128 § of a training example; short texts of one user are packed into it
  holdout: {{users: 0.1, visibility: public}} § (?) these users are never trained on, and give up
§ protection: exact statistics of their texts are published; 0 evaluates nothing; visibility: private keeps them
§ protected, and what is measured on them is noisy
  population: public § (?) the number of users is no secret; if it is, give a round number, or
§ noisy (charged; needs sampling.rate in place of expected)

model:
  base: HuggingFaceTB/SmolLM2-135M-Instruct § a hub id, or a folder
  adapter: {{type: lora, r: 4, alpha: 80, targets: [v_proj], freeze_a: true}} § few weights: noise falls on
§ each of them. More targets, a higher r or freeze_a: false can learn more, under more noise
  dtype: bfloat16 § of the frozen base; many CPUs are faster with float32

{_noise(s)}

privacy:
  epsilon: 8 § nobody's whole history changes the odds of any outcome by more than
§ e^ε; smaller is stricter: 1 is strong, 8 is usual for language models
  delta: 1.0e-6 § (?) must be far below one in the number of users: at most 1e-6 for
§ 100,000 users, 1e-7 for a million

sampling:
  expected: 64 § (?) users per step, drawn anew each time; more take longer, with less
§ noise. Fewer than there are: a hundredth to a fifth of all users is usual.
§ `unit: example` draws examples in place of users, `unit: auto` chooses
  examples_per_user: 4 § at most so many of a user's examples enter a step; costs no privacy

clipping: {{norm: 0.5}} § bound on one user's influence on a step; noise is in proportion.
§ {{type: adaptive, initial: 0.5}} finds it on the way, at a small charge

train:
  steps: 40 § few steps with many users each beat many with few: at the same number of
§ tokens, 20 to 50 with the largest cohort you can wait for
  optimizer: {{type: adamw, lr: 5.0e-3}} § goes with alpha: what moves the model is lr · alpha / r
  schedule: {{type: linear}} § the learning rate falls to 0: the last steps average the noise away
  checkpoint_every: 20 § metrics are released with these; an interrupted run goes on from one

compute: {{workers: 1, accelerator: auto, deepspeed: {{stage: 2}}}}   # speed only, never privacy
""")


def _aligned(text: str) -> str:
    """Puts what stands after a § into a comment, all in one column."""
    lines = []
    for line in text.splitlines():
        code, mark, comment = line.partition("§")
        if not mark:
            lines.append(line)
        if mark and len(code.rstrip()) > _COLUMN:  # no room beside it
            lines.append(code.rstrip())
            code = ""
        for part in textwrap.wrap(comment.strip(), 120 - _COLUMN - 4) if mark else ():
            lines.append(f"{code.rstrip():<{_COLUMN}}  # {part}")
            code = ""
    return "\n".join(lines) + "\n"


def _source(s: Starter) -> str:
    block = ", ".join(f"{key}: {scalar(value)}" for key, value in s.source.items())
    line = f"  source: {{{block}}}"
    return f"{line} § (?) the encoding is a guess: the files are not UTF-8" if s.encoding_guessed else line


def _runner_up(s: Starter) -> str:
    return f" (or is it {scalar(s.runner_up)}?)" if s.runner_up is not None else ""


def _learnt(s: Starter) -> str:
    line = {
        "text": f"  text: {scalar(s.text)}",
        "pair": f"  text: {{prompt: {scalar(s.text)}, completion: {scalar(s.completion or '')}}}",
        "messages": f"  messages: {scalar(s.text)}",
    }[s.form]
    return f"{line} § (?) {s.why_text}"


def _time(s: Starter) -> str:
    if s.time is None:
        return ""
    return f"  # time: {scalar(s.time)} § (?) when a record was written, for rules by time, as usage (sessions)\n"


def _attributes(s: Starter) -> str:
    line = "  attributes: [] § public columns, by which users may be grouped"
    if not s.candidates:
        return line
    names = ", ".join(map(scalar, s.candidates))
    return (
        f"{line}\n§ (?) few values, and one per user: {names};\n§ name one here only if all may know it of every user"
    )


def _noise(s: Starter) -> str:
    line = "noise: {type: uniform} § one ε for all"
    if not s.candidates:
        return line
    return (
        f"{line}; or, with a public column among the attributes,\n§ an ε per value of it, in place of this line:\n"
        f"# segmentation: {{type: attribute, column: {scalar(s.candidates[0])}}}\n"
        "# noise: {type: scale, epsilon: {ONE VALUE: 8, ANOTHER: 4, other: 4}}"
    )
