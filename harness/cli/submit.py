"""``uudp submit``: a spec or a suite from here to a Ray cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import completion, console
from harness.cli.run import confirm

if TYPE_CHECKING:
    from harness.cluster.client import Cluster
    from harness.cluster.submitting import Checked, Submission

ADDRESS = "the cluster's job server, http://HOST:8265; left out: what RAY_API_SERVER_ADDRESS says"


class Verb(StrEnum):
    """What is done there."""

    run = "run"
    sweep = "sweep"
    bench = "bench"


class Target(StrEnum):
    """What else than a Ray cluster's job server."""

    kuberay = "kuberay"


def submit(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="a file, or a packaged name", autocompletion=completion.specs)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="replace values of the spec: train.steps=50")
    ] = None,
    address: Annotated[str | None, typer.Option("--address", metavar="URL", help=ADDRESS)] = None,
    verb: Annotated[
        Verb | None,
        typer.Option("--verb", help="what is done there; left out: bench for a suite, sweep for a spec with a sweep"),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="ID", help="go on with this job's run, under the same id")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="follow it, and end with its exit code")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask; required where there is no terminal")] = False,
    send_data: Annotated[
        bool, typer.Option("--send-data", help="consent to send private records that lie here")
    ] = False,
    not_private: Annotated[
        bool, typer.Option("--not-private", help="consent to a spec without noise (noise.type: none)")
    ] = False,
    python: Annotated[str, typer.Option("--python", help="the interpreter there that has uudp")] = "python",
    to: Annotated[
        Target | None, typer.Option("--to", help="kuberay, with --dry-run: write a RayJob and the image's Dockerfile")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and show all, and send nothing")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="of --to kuberay: a new folder; left out: kuberay-NAME")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Send a spec to a Ray cluster, and run it there.

    What is sent: the spec merged with its bases, small data and a base model that lie here, and plugins named as
    module:attr from your own folders. A path below compute.storage, or an absolute one that is not here, is the
    cluster's. Runs lie in compute.storage, where uudp fetch finds them. Secrets are never sent: set them on the
    cluster, or put them into compute.storage/secrets.env (chmod 600), as NAME=value lines.
    """
    from harness.cluster.client import Cluster, server
    from harness.cluster.submitting import check
    from harness.cluster.submitting import submit as send
    from harness.errors import ArgumentError

    if to is not None and not dry_run:
        raise ArgumentError("--to: kuberay is written with --dry-run alone; kubectl applies it")
    if out is not None and to is None:
        raise ArgumentError("--out: is for --to kuberay")
    where = "" if dry_run else server(address)
    verb = verb or _verb_of(spec, overrides or [])
    submission = _submission(spec, overrides or [], verb, resume, not_private, python)
    if not not_private and any(one.spec.noise.type == "none" for one in submission.specs.values()):
        raise ArgumentError("noise.type: none trains without privacy; say --not-private if that is what you want")
    if dry_run:
        _dry(check(submission, send_data=send_data or to is not None), to, out, json=json)
        return
    cluster = Cluster(where)
    checked = check(submission, send_data=send_data)
    _show(checked)
    if verb is not Verb.run:
        console.err(f"what is done there: uudp {verb.value}")
    confirm(yes)
    job = send(checked, cluster)
    run = job.metadata["run"]
    if not wait:
        if json:
            document = {"id": job.id, "run": run, "verb": verb.value, "storage": str(checked.storage)}
            console.emit_json({**document, "address": where, "dashboard": dashboard(where, job.id)})
        else:
            console.out(f"submitted: {job.id}")
            console.out(f"dashboard: {dashboard(where, job.id)}")
            console.out(f"follow it: {shlex.join(['uudp', 'logs', run, '-f', '--address', where])}")
        return
    console.err(f"submitted: {job.id}")
    console.err(f"dashboard: {dashboard(where, job.id)}")
    code = followed(cluster, job.id, run)
    if code == 130:
        words = ["uudp", "submit", spec, *(overrides or []), "--address", where, "--resume", run]
        words += ["--verb", verb.value] * (verb is not Verb.run) + ["--yes"] * yes + ["--send-data"] * send_data
        console.err(f"uudp: stopped; go on with: {shlex.join(words + ['--not-private'] * not_private)}")
    if json:
        console.emit_json({"id": job.id, "run": run, "storage": str(checked.storage), "exit_code": code})
    elif code == 0:
        console.out(f"fetch it: {shlex.join(['uudp', 'fetch', run, '--address', where])}")
    raise typer.Exit(code)


def _dry(checked: Checked, to: Target | None, out: Path | None, *, json: bool) -> None:
    """Shows all, and writes it where it is asked for; sends nothing."""
    _show(checked)
    if to is None:
        if json:
            console.emit_json({"storage": str(checked.storage), "notes": list(checked.notes)})
        else:
            console.out("nothing was sent (--dry-run)")
        return
    from harness.cluster.kuberay import write

    folder = out or Path(f"kuberay-{checked.submission.name}")
    run = write(checked, folder)
    if json:
        console.emit_json({"run": run, "folder": str(folder), "manifest": str(folder / "rayjob.yaml")})
        return
    console.out(f"written: {folder}/rayjob.yaml, {folder}/Dockerfile, {folder}/job (run {run})")
    console.out(f"next: build and push the image that the Dockerfile says, and kubectl apply -f {folder}/rayjob.yaml")


def dashboard(address: str, job: str) -> str:
    """The page of a job in Ray's dashboard, which the job server's port shows too."""
    return f"{address}/#/jobs/{job}"


def _verb_of(spec: str, overrides: Sequence[str]) -> Verb:
    """What a file is for: a suite says its name as `suite`, and a spec to be searched has a `sweep`."""
    from harness.benchmarking.reading import find_suite
    from harness.spec import load_spec
    from harness.spec.merging import find_spec
    from harness.spec.reading import read_file

    path = find_spec(spec)
    if "suite" in read_file(path if path.is_file() else find_suite(spec), []).data:
        return Verb.bench
    return Verb.run if load_spec(spec, overrides).spec.sweep is None else Verb.sweep


def followed(cluster: Cluster, job: str, run: str) -> int:
    """Shows what a job prints until it ends; returns its exit code.

    Raises:
        Interrupted: By Ctrl-C, which leaves the job alone.
    """
    from harness.cluster.following import follow
    from harness.errors import Interrupted

    try:
        info = follow(cluster, job, console.err, console.err)
    except KeyboardInterrupt:
        again = shlex.join(["uudp", "logs", run, "-f", "--address", cluster.address])
        raise Interrupted(f"the job goes on; follow it again: {again}") from None
    if info.exit_code not in (0, 130) and info.code is None and info.message:
        console.error(f"uudp: the cluster could not start it: {console.shortened(info.message, 500)}")
    elif info.code == 127:
        console.error("uudp: the cluster has no such interpreter; name it with --python")
    return info.exit_code


def _submission(
    spec: str, overrides: Sequence[str], verb: Verb, resume: str | None, not_private: bool, python: str
) -> Submission:
    from harness.cluster.submitting import Submission
    from harness.spec import load_spec
    from harness.spec.overriding import flow, override

    options = ["--not-private"] * not_private
    if verb is not Verb.bench:
        loaded = load_spec(spec, overrides)
        options = options if verb is Verb.run else []
        return Submission(
            verb.value,
            {"spec.yaml": loaded},
            overrides,
            loaded.spec.name,
            resume=resume,
            options=options,
            python=python,
        )
    from harness.benchmarking.cells import load_cell, policies
    from harness.benchmarking.reading import load_suite

    suite = load_suite(spec)
    places: dict[str, Path] = {f"specs/{label or 'spec'}.yaml": path for label, path in suite.specs.items()}
    everywhere = [override(key, value) for key, value in suite.suite.set.items()]
    specs = {place: load_spec(path, [*overrides, *everywhere]) for place, path in places.items()}
    named = (
        {"spec": "specs/spec.yaml"}
        if "" in suite.specs
        else {"specs": {label: f"specs/{label}.yaml" for label in suite.specs}}
    )
    cells = []
    for label, path in suite.specs.items():
        for one in policies(suite, label):
            load_cell(suite, one, suite.suite.seeds[0])  # what is wrong is said at its place in the suite
            cells.append(load_spec(path, [*overrides, *(override(own.key, own.value) for own in one.settings)]))
    text = "".join(f"{key}: {flow(value)}\n" for key, value in {**suite.merged.data, **named}.items())
    return Submission(
        "bench", specs, overrides, suite.suite.suite,
        main="suite.yaml", texts={"suite.yaml": text}, cells=cells, resume=resume, python=python,
    )  # fmt: skip


def _show(checked: Checked) -> None:
    from harness.cli.plan import describe

    if checked.plan is not None:
        document = checked.plan.document()
        if checked.submission.loaded.spec.privacy.ledger is not None:  # it was not asked here, which does not mean none
            document["notes"] = [note for note in document["notes"] if not note.startswith("No ledger")]
        for line in describe(document):
            console.err(line)
        console.err()
    for note in checked.notes:
        console.err(note)
