"""A tiny language of conditions: parsed by Python's parser, then only what is listed here is understood.

Numbers, texts, names, ``+ - * /``, comparisons, ``in (…)``, ``and``, ``or``, ``not``. No calls, attributes, indices or
powers. Types are checked before anybody is looked at, so that a condition can't fail on somebody's data: whether it
failed would tell something of them.
"""

from __future__ import annotations

import ast
import io
import operator
import tokenize
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from harness.plugins import suggest

MOST_CHARACTERS = 500
MOST_DEPTH = 20
LARGEST = 1e15

Kind = Literal["number", "text", "truth"]
Names = Mapping[str, float | str]
"""The value of every name, for one user."""

_OPERATIONS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, options: value in options,
    ast.NotIn: lambda value, options: value not in options,
}
_REFUSED: Mapping[type[ast.AST], str] = {
    ast.Call: "a call",
    ast.Attribute: "an attribute",
    ast.Subscript: "an index",
    ast.Pow: "a power",
    ast.IfExp: "if … else",
    ast.Lambda: "a lambda",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "a formatted text",
    ast.Tuple: "a list other than after in",
    ast.List: "a list other than after in",
    ast.Is: "is (write ==)",
    ast.IsNot: "is not (write !=)",
    ast.BitAnd: "& (write and)",
    ast.BitOr: "| (write or)",
    ast.Invert: "~ (write not)",
}


class ExpressionError(ValueError):
    """A condition that makes no sense; one line that quotes the spec alone."""


@dataclass(frozen=True)
class _Part:
    """A part of a condition that was understood.

    Attributes:
        kind: What it gives.
        value: Gives it, for one user's names.
        constant: It holds no name.
    """

    kind: Kind
    value: Callable[[Names], Any]
    constant: bool = False


def condition(text: str, kinds: Mapping[str, Kind]) -> Callable[[Names], bool]:
    """What a condition says of a user, as a function of the values of the names.

    Division by zero makes the whole condition not hold. Numbers are floats; texts compare by code point.

    Args:
        text: As the spec writes it.
        kinds: What every name that it may use gives.

    Raises:
        ExpressionError: It is no condition of the language.
    """
    return _condition(text, tuple(kinds.items()))


@lru_cache(maxsize=256)  # a rule is copied for every user, and holds texts alone
def _condition(text: str, kinds: tuple[tuple[str, Kind], ...]) -> Callable[[Names], bool]:
    part = _understood(_parsed(text), dict(kinds), 1)
    if part.kind != "truth":
        raise ExpressionError(f"is a {part.kind}, no condition: compare it with something")
    if part.constant:
        raise ExpressionError("says the same of everybody: it uses no name")

    def holds(names: Names) -> bool:
        try:
            return bool(part.value(names))
        except ZeroDivisionError:
            return False

    return holds


def _parsed(text: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        raise ExpressionError(f"has {len(text)} characters; at most {MOST_CHARACTERS} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ast.parse(f"({text})", mode="eval").body  # in brackets, a line break is no end
    except SyntaxError as error:
        raise ExpressionError(f"can't be read ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError("can't be read") from None
    tokens = tokenize.generate_tokens(io.StringIO(f"({text})").readline)
    if any(token.type == tokenize.COMMENT for token in tokens):  # YAML may have folded the next line into it
        raise ExpressionError("holds a comment (#)")
    return found


def _understood(node: ast.AST, kinds: Mapping[str, Kind], depth: int) -> _Part:
    if depth > MOST_DEPTH:
        raise ExpressionError(f"is nested more than {MOST_DEPTH} deep")
    if isinstance(node, ast.Constant):
        return _constant(node.value)
    if isinstance(node, ast.Name):
        return _name(node.id, kinds)
    if isinstance(node, ast.UnaryOp):
        return _unary(node, kinds, depth)
    if isinstance(node, ast.BinOp):
        return _arithmetic(node, kinds, depth)
    if isinstance(node, ast.BoolOp):
        return _joined(node, kinds, depth)
    if isinstance(node, ast.Compare):
        return _comparison(node, kinds, depth)
    raise _refused(node)


def _refused(node: ast.AST) -> ExpressionError:
    what = _REFUSED.get(type(node), type(node).__name__)
    return ExpressionError(
        f"{what} is no part of the language (numbers, texts, names, + - * /, comparisons, in, and, or, not)"
    )


def _constant(value: object) -> _Part:
    if isinstance(value, str):
        return _Part("text", lambda _: value, constant=True)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"only numbers and texts in quotes are values, found {type(value).__name__}")
    if not abs(value) <= LARGEST:
        raise ExpressionError(f"holds a number above {LARGEST:g}")
    number = float(value)
    return _Part("number", lambda _: number, constant=True)


def _name(name: str, kinds: Mapping[str, Kind]) -> _Part:
    if name not in kinds:
        near = suggest(name, kinds)
        rest = f'; did you mean "{near}"?' if near else f" (there are: {', '.join(kinds)}; a text is put in quotes)"
        raise ExpressionError(f'there is no "{name[:50]}"{rest}')
    return _Part(kinds[name], lambda names: names[name])


def _unary(node: ast.UnaryOp, kinds: Mapping[str, Kind], depth: int) -> _Part:
    if isinstance(node.op, ast.Invert):
        raise _refused(node.op)
    part = _understood(node.operand, kinds, depth + 1)
    if isinstance(node.op, ast.Not):
        _expect(part, "truth", "not")
        return _Part("truth", lambda names: not part.value(names), part.constant)
    _expect(part, "number", "a sign")
    sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
    return _Part("number", lambda names: sign * part.value(names), part.constant)


def _arithmetic(node: ast.BinOp, kinds: Mapping[str, Kind], depth: int) -> _Part:
    if type(node.op) not in (ast.Add, ast.Sub, ast.Mult, ast.Div):
        raise _refused(node.op)
    left, right = _understood(node.left, kinds, depth + 1), _understood(node.right, kinds, depth + 1)
    for part in (left, right):
        _expect(part, "number", "+ - * /")
    if isinstance(node.op, ast.Div) and right.constant and _value(right) == 0:
        raise ExpressionError("divides by zero")
    run = _OPERATIONS[type(node.op)]
    part = _Part("number", lambda names: run(left.value(names), right.value(names)), left.constant and right.constant)
    if part.constant:
        _value(part)
    return part


def _value(part: _Part) -> float:
    """Of a constant number."""
    return float(part.value({}))


def _joined(node: ast.BoolOp, kinds: Mapping[str, Kind], depth: int) -> _Part:
    parts = [_understood(one, kinds, depth + 1) for one in node.values]
    word, every = ("and", all) if isinstance(node.op, ast.And) else ("or", any)
    for part in parts:
        _expect(part, "truth", word)
    return _Part("truth", lambda names: every(part.value(names) for part in parts), all(p.constant for p in parts))


def _comparison(node: ast.Compare, kinds: Mapping[str, Kind], depth: int) -> _Part:
    parts = [_understood(node.left, kinds, depth + 1)]
    for op, right in zip(node.ops, node.comparators, strict=True):
        if type(op) not in _OPERATIONS:
            raise _refused(op)
        listed = isinstance(op, ast.In | ast.NotIn)
        parts.append(_options(right, kinds, depth + 1) if listed else _understood(right, kinds, depth + 1))
        if listed and len(node.ops) > 1:
            raise ExpressionError("in is not chained with other comparisons: join them by and")
    for left, found in pairwise(parts):
        if "truth" in (left.kind, found.kind):
            raise ExpressionError("compares what is a comparison itself: join them by and")
        if left.kind != found.kind:
            raise ExpressionError(f"compares a {left.kind} with a {found.kind}")
    runs = [_OPERATIONS[type(op)] for op in node.ops]

    def holds(names: Names) -> bool:
        values = [part.value(names) for part in parts]
        return all(run(a, b) for run, (a, b) in zip(runs, pairwise(values), strict=True))

    return _Part("truth", holds, all(part.constant for part in parts))


def _options(node: ast.expr, kinds: Mapping[str, Kind], depth: int) -> _Part:
    """What stands after ``in``: constants of one kind."""
    if not isinstance(node, ast.Tuple | ast.List) or not node.elts:
        raise ExpressionError('after in, there must be a list, as in ("free", "paid")')
    parts = [_understood(one, kinds, depth + 1) for one in node.elts]
    if not all(part.constant for part in parts) or len({part.kind for part in parts}) != 1:
        raise ExpressionError("a list holds numbers alone or texts alone")
    values = tuple(part.value({}) for part in parts)
    return _Part(parts[0].kind, lambda _: values, constant=True)


def _expect(part: _Part, kind: Kind, where: str) -> None:
    if part.kind != kind:
        wanted = {"number": "numbers", "text": "texts", "truth": "conditions"}[kind]
        found = "a condition" if part.kind == "truth" else f"a {part.kind}"
        raise ExpressionError(f"{where} needs {wanted}, found {found}")
