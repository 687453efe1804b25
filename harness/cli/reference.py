"""What ``--help`` says below the options of a verb: examples, and what its exit codes mean."""

from __future__ import annotations

from collections.abc import Mapping

MEANINGS = {
    0: "done",
    1: "anything else; the message names a file with the details",
    2: "the spec, the data or the arguments are wrong",
    3: "the privacy budget refuses",
    4: "this machine can't do it",
    130: "interrupted; what was begun can be resumed",
}
"""Of all exit codes."""

CODES: Mapping[str, tuple[int, ...]] = {
    "plan": (0, 2, 3, 4),
    "run": (0, 1, 2, 3, 4, 130),
    "sweep": (0, 1, 2, 3, 4, 130),
    "submit": (0, 1, 2, 3, 4, 130),
    "jobs": (0, 2, 4),
    "logs": (0, 1, 2, 3, 4, 130),
    "stop": (0, 2, 4),
    "fetch": (0, 2, 4),
    "audit": (0, 1, 2, 4, 130),
    "bench": (0, 1, 2, 3, 4, 130),
    "leaderboard": (0, 2, 4),
    "generate": (0, 2, 4),
    "export": (0, 2, 4),
    "ledger": (0, 2, 4),
    "doctor": (0, 4),
    "schema": (0,),
}
"""Which ones a verb ends with, where they are not 0 and 2."""

EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "init": (
        ("uudp init", "my-run.yaml, to be filled in"),
        ("uudp init mails --data mails.csv", "mails.yaml, for the columns of that file"),
    ),
    "validate": (
        ("uudp validate mails.yaml", ""),
        ("uudp validate *.yaml train.steps=50", "several, all with an override"),
    ),
    "plan": (
        ("uudp plan quickstart", "a packaged spec"),
        ("uudp plan mails.yaml privacy.epsilon=4 --json", "an override; for a program"),
        ("uudp plan mails.yaml --compare all", "beside other noise policies"),
        ("uudp plan mails.yaml --on 64xH100 --price 2.5", "time and cost elsewhere"),
    ),
    "run": (
        ("uudp run mails.yaml", "shows the plan and asks"),
        ("uudp run mails.yaml --yes --out results", "asks nothing; for scripts"),
        ("uudp run mails.yaml --resume", "goes on after Ctrl-C or a crash"),
    ),
    "sweep": (
        ("uudp sweep mails.yaml --plan", "what the search would cost, beside others"),
        ("uudp sweep mails.yaml --yes", "searches sweep.space, and keeps the best"),
        ("uudp sweep mails.yaml --resume", "goes on after Ctrl-C or a crash"),
    ),
    "bench": (
        ("uudp bench shakespeare --plan", "a packaged suite: cells and cost"),
        ("uudp bench suite.yaml --yes", "trains all cells"),
        ('uudp bench suite.yaml --only "*-s1"', "those of the first seed alone"),
        ("uudp bench suite.yaml --resume", "goes on after Ctrl-C or a crash"),
    ),
    "submit": (
        ("uudp submit mails.yaml --address http://head:8265", ""),
        ("uudp submit mails.yaml --wait compute.storage=/mnt/uudp", "follows it"),
        ("uudp submit mails.yaml --resume 20260101-100000-a1b2c3", "goes on"),
        ("uudp submit mails.yaml --to kuberay --dry-run", "writes a RayJob"),
        ("uudp submit suite.yaml", "a suite, or a sweep"),
    ),
    "jobs": (("uudp jobs --address http://head:8265", ""),),
    "logs": (("uudp logs 20260101 -f", "until it ends"),),
    "stop": (("uudp stop 20260101", "with a checkpoint"),),
    "fetch": (
        ("uudp fetch 20260101", "runs/NAME/ID, without private/"),
        ("uudp fetch 20260101 --to results", ""),
    ),
    "runs": (
        ("uudp runs", ""),
        ("uudp runs compare 20260101 20260102-10", "the beginning of an id will do"),
    ),
    "audit": (
        ("uudp audit 20260101", "the attacks of its spec again"),
        ("uudp audit 20260101 audit.reconstruction={}", "one more: nothing is planted"),
    ),
    "report": (("uudp report 20260101-100000-a1b2c3", ""),),
    "leaderboard": (
        ("uudp leaderboard runs", "site/index.html, of all runs there"),
        ("uudp leaderboard --check my-run", "may it be submitted?"),
        ("uudp leaderboard runs --markdown SUITE", "a suite's table"),
    ),
    "generate": (
        ('uudp generate 20260101 --prompt "Dear customer,"', ""),
        ('uudp generate 20260101 --prompt "Dear" --temperature 0', "the same each time"),
    ),
    "export": (("uudp export 20260101 --merge --to my-model", ""),),
    "account": (
        ("uudp account --noise-multiplier 1 --rate 0.01 --steps 1000 --delta 1e-5", ""),
        ("uudp account … --examples-per-user 4", ""),
        ("uudp account … --trials geometric --trials-mean 10", ""),
    ),
    "ledger": (
        ("uudp ledger budget mails --epsilon 9 --delta 1e-5", "all runs together"),
        ("uudp ledger show mails", "what is left, its runs"),
        ("uudp ledger verify 20260101", "and a run's receipt"),
        ("uudp ledger void 20260101-100000-a1b2c3", "crashed before training"),
    ),
    "policies": (
        ("uudp policies", "all plugins"),
        ("uudp policies show scale", "what it does, and its parameters"),
        ("uudp policies show noise/none", "where kinds share a name"),
        ("uudp policies new noise mine", "a package in ./mine, with its test"),
    ),
    "schema": (("uudp schema > schema.json", ""),),
    "doctor": (("uudp doctor", ""), ("uudp doctor --json", "")),
}  # fmt: skip


def epilog(verb: str) -> str:
    """The examples and exit codes of a verb, as lines that are not to be wrapped."""
    width = max(len(command) for command, _ in EXAMPLES[verb])
    lines = ["Examples:" if len(EXAMPLES[verb]) > 1 else "Example:"]
    for command, meaning in EXAMPLES[verb]:
        lines.append(f"  {command:<{width}}  {meaning}".rstrip())
    return _kept([lines, _codes(CODES.get(verb, (0, 2)))])


def root_epilog() -> str:
    """What the help of `uudp` itself ends with."""
    way = [
        "The usual way:",
        "  uudp init mails --data mails.csv   a commented spec for your own file",
        "  uudp plan mails.yaml               what it will do, and at what ε",
        "  uudp run mails.yaml                trains, evaluates, reports",
    ]
    more = [
        "uudp VERB --help has examples; uudp policies show NAME explains a plugin.",
        "uudp --install-completion lets your shell complete verbs, specs and runs.",
    ]
    return _kept([way, _codes(tuple(MEANINGS)), more])


def _codes(codes: tuple[int, ...]) -> list[str]:
    return ["Exit codes:", *(f"  {code:<4} {MEANINGS[code]}" for code in codes)]


def _kept(paragraphs: list[list[str]]) -> str:
    """Click wraps paragraphs unless they begin with a backspace."""
    return "\n\n".join("\b\n" + "\n".join(lines) for lines in paragraphs)
