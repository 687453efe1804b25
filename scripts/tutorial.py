"""From a file of (user, text) to a report, in six commands. Run it, then read it.

    python scripts/tutorial.py [DATA] [--folder FOLDER] [--base MODEL] [KEY=VALUE ...]

DATA is your own file, as a CSV with a column of users and one of texts. Without it a small CSV of support tickets is
made, and the rest is exactly what you would type for yours. KEY=VALUE goes to every command that reads the spec, as in
`train.steps=5`; with fewer than some hundred users, give `sampling.expected` (users per step) as well.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

USERS = 120
OPENINGS = ("Hello,", "Good morning,", "Hi there,", "Dear team,")
PROBLEMS = ("the invoice is wrong", "the login fails", "my parcel is late", "the app crashes when it starts")
WISHES = ("Please look into it.", "Can you help?", "What should I do?", "Thank you for a quick answer.")


def main() -> None:
    """Makes the data, unless there are some, and walks through the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arguments", nargs="*", metavar="DATA|KEY=VALUE", help="your file; changes to the spec")
    parser.add_argument("--folder", type=Path, default=Path("tutorial"), help="where everything goes")
    parser.add_argument("--base", help="the model to fine-tune, in place of the starter's")
    parser.add_argument("--user", help="the column of users, where it can't be guessed")
    parser.add_argument("--text", help="the column of texts, where it can't be guessed")
    options = parser.parse_intermixed_args()
    data, changes = split(options.arguments)
    changes += [f"model.base={options.base}"] if options.base else []
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)

    if data is None:
        say("1. The data: a row per ticket, with who wrote it. Nothing else is needed.")
        data = make_tickets(folder / "tickets.csv")
    else:
        say("1. The data are yours.")
    named = [part for key in ("user", "text") if (value := getattr(options, key)) for part in (f"--{key}", value)]

    say("2. A spec for them. `init` looks at the columns, and explains every line that it writes.")
    name = name_of(data)
    spec = f"{name}.yaml"
    if (folder / spec).exists():
        if differs := other_data(folder / spec, data, options.user, options.text):
            sys.exit(f"tutorial: {folder / spec} {differs}; change it, move it away, or give another --folder")
        print(f"({spec} is there already, and is left as it is)")
    else:
        uudp(folder, "init", name, "--data", os.path.relpath(data, folder), *named)

    say("3. Is the spec right? This reads the spec alone.")
    uudp(folder, "validate", spec, *changes)

    say("4. What would it cost, and what would it promise? This counts users, and reads no text.")
    uudp(folder, "plan", spec, *changes)

    say("5. Train, evaluate and report. (Without --yes it asks first; Ctrl-C stops with a checkpoint.)")
    uudp(folder, "run", spec, *changes, "--yes")

    say("6. The report again, as for any run that is there. Open it in a browser.")
    newest = max((folder / "runs" / name).iterdir(), key=lambda run: run.stat().st_mtime)
    uudp(folder, "report", str(newest.relative_to(folder)))


def split(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """One's own file, if one is named, and the changes to the spec."""
    files = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    if len(files) > 1:
        sys.exit(f"tutorial: one file at a time, not {shlex.join(files)}")
    if files and not Path(files[0]).exists():
        sys.exit(f"tutorial: there is no file {files[0]}")
    return Path(files[0]) if files else None, [argument for argument in arguments if argument not in files]


def name_of(data: Path) -> str:
    """A spec's name for a file: its own, as far as the letters can stand in one, so that each has its own spec."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", data.name.split(".")[0]).strip("-._")[:100] or "mine"


def other_data(spec: Path, data: Path, user: str | None, text: str | None) -> str:
    """What a spec that is there says of its data other than what was given; nothing if it is the spec for them."""
    try:
        block = yaml.safe_load(spec.read_text(encoding="utf-8"))["data"]
        path = block["source"]["path"]
        same = (spec.parent / path.removesuffix("/*")).resolve() == data.resolve()
    except Exception:  # broken, or no longer what `init` wrote: `validate` says more, of the right data or not
        return "does not say that it is for these data"
    if not same:
        return f"is for other data, {path}"
    columns: dict[str, tuple[str | None, Any]] = {
        "user": (user, block.get("user", "user")), "text": (text, block.get("text") or block.get("messages")),
    }  # fmt: skip
    for key, (given, said) in columns.items():
        if given is not None and given != said:
            return f"has another column of {key}s, {said}"
    return ""


def make_tickets(path: Path) -> Path:
    """Writes made tickets: some customers write once, some often."""
    draw = random.Random(7)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "plan", "text"])
        for number in range(USERS):
            for _ in range(min(9, 1 + int(draw.paretovariate(1.2)))):
                text = " ".join(draw.choice(part) for part in (OPENINGS, PROBLEMS, WISHES))
                writer.writerow([f"customer-{number:03d}", ("free", "paid")[number % 3 == 0], text])
    return path


def say(text: str) -> None:
    """One line of the tutorial."""
    print(f"\n# {text}", flush=True)


def uudp(folder: Path, *arguments: str) -> None:
    """Shows a command and runs it; ends the tutorial where it fails."""
    print(f"$ uudp {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "harness", *arguments], cwd=folder, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
