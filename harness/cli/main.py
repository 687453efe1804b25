"""The command `uudp`: registers the verbs, and turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from harness import __version__
from harness.cli import console, reference
from harness.errors import UserError

# Each is a function of its own name in a module of its own name; the order is that of the help.
VERBS = (
    "init",
    "validate",
    "plan",
    "run",
    "sweep",
    "bench",
    "submit",
    "jobs",
    "logs",
    "stop",
    "fetch",
    "runs",
    "audit",
    "report",
    "leaderboard",
    "generate",
    "export",
    "account",
    "ledger",
    "policies",
    "schema",
    "doctor",
)

# What the base install does without.
TRAIN = {"torch", "optuna", "transformers", "peft", "deepspeed", "safetensors", "huggingface_hub", "tokenizers", "gguf"}

app = typer.Typer(
    name="uudp",
    help="Fine-tune language models under user-level differential privacy.",
    epilog=reference.root_epilog(),
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out(f"uudp {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        console.out(context.get_help())


for _verb in VERBS:
    app.command(_verb, epilog=reference.epilog(_verb))(getattr(importlib.import_module(f"harness.cli.{_verb}"), _verb))


def main() -> None:
    """Runs the command line and ends the process with its exit code (0, 1, 2, 3, 4 or 130)."""
    try:
        code = run_app(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def run_app(arguments: list[str]) -> int:
    """Runs one command line; prints what went wrong to stderr.

    Raises:
        BrokenPipeError: Nobody reads the output any more.
    """
    try:
        console.check_log()
        code = app(arguments, prog_name="uudp", standalone_mode=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except UserError as error:
        return _user_error(error)
    except (KeyboardInterrupt, typer.Abort):
        console.error("uudp: interrupted")
        return 130
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in TRAIN:
            return _unexpected(error)
        console.error(f'uudp: {error.name} is not installed, which this needs: pip install "uudp[train]"')
        return 4
    except UnicodeEncodeError as error:
        if error.encoding.replace("-", "").lower() == "utf8" or error.encoding != sys.getfilesystemencoding():
            return _unexpected(error)
        console.error(f"uudp: a path has letters that this locale ({error.encoding}) can't write; set PYTHONUTF8=1")
        return 4
    except Exception as error:
        return _usage_error(error) if hasattr(error, "format_message") else _unexpected(error)
    if code == 130:
        console.error("uudp: interrupted")
    return code if isinstance(code, int) else 0


def _user_error(error: UserError) -> int:
    """Lines of a spec's problems are printed bare, so that an editor can jump to them."""
    prefix = "" if hasattr(error, "problems") else "uudp: "
    for line in str(error).splitlines():
        console.error(prefix + line)
    return error.exit_code


def _usage_error(error: Exception) -> int:
    """What the command line itself has wrong, as typer says it, in one line."""
    message = str(getattr(error, "message", "")) or error.format_message()  # type: ignore[attr-defined]
    near = list(getattr(error, "possibilities", None) or ())
    if near:
        message = f'{message.rstrip(".")}; did you mean "{near[0]}"?'
    elif not getattr(error, "message", "") or hasattr(error, "param_hint"):
        message = error.format_message()  # type: ignore[attr-defined]
    console.error("uudp: " + " ".join(message.split()))
    return int(getattr(error, "exit_code", 2))


def _unexpected(error: Exception) -> int:
    """A bug of ours. Its message may quote a record, so it goes to a file that only the user can read."""
    path = Path(tempfile.mkdtemp(prefix="uudp-")) / "traceback.txt"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        traceback.print_exception(error, file=stream)
    console.error(
        f"uudp: unexpected {type(error).__name__}; the full traceback, which may hold private text, is in {path}"
    )
    return 1


if __name__ == "__main__":
    main()
