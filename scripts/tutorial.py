"""From a file of (user, text) to a report, in five commands. Run it, then read it.

    python scripts/tutorial.py [--folder FOLDER] [--base MODEL] [--format csv|jsonl] [KEY=VALUE ...]

It makes a small file of support tickets, and then runs exactly what you would type. To do the same with a file of
your own, leave out the first step. What follows the options goes to every command that reads the spec, as in
``train.steps=5``.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

USERS = 120
OPENINGS = ("Hello,", "Good morning,", "Hi there,", "Dear team,")
PROBLEMS = ("the invoice is wrong", "the login fails", "my parcel is late", "the app crashes when it starts")
WISHES = ("Please look into it.", "Can you help?", "What should I do?", "Thank you for a quick answer.")


def main() -> None:
    """Makes the data and walks through the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("tutorial"), help="where everything goes")
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="the model to fine-tune")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="jsonl", help="of the data")
    parser.add_argument("override", nargs="*", metavar="KEY=VALUE", help="changes to the spec")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    say("1. The data: a row per ticket, with who wrote it. Nothing else is needed.")
    data = make_tickets(options.folder / f"tickets.{options.format}")

    say("2. A spec for it. `init` looks at the columns, and explains every line that it writes.")
    if not (options.folder / "tickets.yaml").exists():
        uudp(options.folder, "init", "tickets", "--data", data.name)

    changes = [f"model.base={options.base}", *options.override]
    say("3. Is the spec right? This reads the spec alone.")
    uudp(options.folder, "validate", "tickets.yaml", *changes)

    say("4. What would it cost, and what would it promise? This counts users, and reads no text.")
    uudp(options.folder, "plan", "tickets.yaml", *changes)

    say("5. Train, evaluate and report. (Without --yes it asks first; Ctrl-C stops with a checkpoint.)")
    uudp(options.folder, "run", "tickets.yaml", *changes, "--yes")

    say("6. What there is now:")
    uudp(options.folder, "runs")


def make_tickets(path: Path) -> Path:
    """Writes made tickets: some customers write once, some often."""
    draw = random.Random(7)
    rows = []
    for number in range(USERS):
        for _ in range(min(9, 1 + int(draw.paretovariate(1.2)))):
            text = " ".join(draw.choice(part) for part in (OPENINGS, PROBLEMS, WISHES))
            rows.append({"customer": f"customer-{number:03d}", "plan": ("free", "paid")[number % 3 == 0], "text": text})
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
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
