"""The RayJob that is written: fields that KubeRay knows, nothing secret or private, and what the spec asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main
from harness.cluster import kuberay
from harness.cluster.kuberay import write
from harness.cluster.submitting import check
from harness.errors import ArgumentError
from tests.cluster.conftest import STORAGE, Laptop, told

# The fields that are used of KubeRay's resource definition of RayJob, v1, and of the pods in it, by hand. Compared with
# ray-operator/config/crd/bases/ray.io_rayjobs.yaml of ray-project/kuberay at feeaf72 (2026-08-19).
ANY: Any = None
QUANTITIES = {"cpu": str, "memory": str, "nvidia.com/gpu": int}
POD = {
    "spec": {
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int},
        "containers": [
            {
                "name": str, "image": str, "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
                "env": [
                    {
                        "name": str, "value": str,
                        "valueFrom": {"secretKeyRef": {"name": str, "key": str, "optional": bool}},
                    }
                ],
                "volumeMounts": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
        "tolerations": [{"key": str, "operator": str, "effect": str}],
        "nodeSelector": ANY,
    }
}  # fmt: skip
RAYJOB = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "labels": ANY},
    "spec": {
        "jobId": str, "entrypoint": str, "metadata": ANY, "runtimeEnvYAML": str, "backoffLimit": int,
        "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int,
        "rayClusterSpec": {
            "rayVersion": str, "authOptions": {"mode": str}, "enableInTreeAutoscaling": bool,
            "headGroupSpec": {"rayStartParams": ANY, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": ANY,
                    "template": POD,
                }
            ],
        },
    },
}  # fmt: skip
REQUIRED = {"groupName", "maxReplicas", "minReplicas", "template"}
IMAGE = "registry.example.org/team/uudp:1"
PUBLIC = {"visibility": "public"}


def unknown(found: Any, known: Any, place: str = "") -> list[str]:
    """Places of what the definition has not, or has as something else."""
    if isinstance(known, dict):
        return [
            line
            for key, value in found.items()
            for line in (unknown(value, known[key], f"{place}.{key}") if key in known else [f"{place}.{key}"])
        ]
    if isinstance(known, list):
        return [line for one in found for line in unknown(one, known[0], place)]
    if known is ANY:  # a map of strings
        return [] if all(isinstance(one, str) for pair in found.items() for one in pair) else [place]
    return [] if type(found) is known else [place]


def written(laptop: Laptop, folder: Path, **compute: Any) -> Any:
    kubernetes = {"image": IMAGE, **compute.pop("kubernetes", {})}
    submission = laptop.submission(data=PUBLIC, compute={"kubernetes": kubernetes, **compute})
    write(check(submission, send_data=True), folder)
    text = (folder / "rayjob.yaml").read_text()
    found = yaml.safe_load(text)
    assert unknown(found, RAYJOB) == []
    assert set(found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]) >= REQUIRED
    return found


def pods(found: Any) -> tuple[Any, Any]:
    cluster = found["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]


def test_a_manifest_on_cpus(laptop: Laptop, tmp_path: Path) -> None:
    """Break: misspell a field (`workerGroupSpec`); leave the storage out of the workers."""
    found = written(laptop, tmp_path / "k", workers=3, kubernetes={"cpus": 2, "memory": "8Gi", "claim": "shared"})
    workers = found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (3, 3, 3)
    for pod in pods(found):
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        assert container["resources"]["limits"] == {"cpu": "2", "memory": "8Gi"}
        assert container["volumeMounts"] == [{"name": "storage", "mountPath": STORAGE}]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
        assert "tolerations" not in pod
    run = found["spec"]["jobId"]
    assert found["metadata"]["name"] == f"mails-{run}"
    assert found["spec"]["metadata"]["folder"] == f"runs/mails/{run}"
    job = told(tmp_path / "k" / "job")
    assert job["arguments"][-2:] == ["--id", run]
    assert job["default_ledger"]


def test_gpus_and_a_number_of_workers_that_varies(laptop: Laptop, tmp_path: Path) -> None:
    found = written(
        laptop, tmp_path / "k", workers={"min": 3, "max": 16}, accelerator="cuda", gpu_type="H100",
        kubernetes={"gpus_per_pod": 8, "node_selector": {"cloud.example.com/gpu": "h100"}},
    )  # fmt: skip
    cluster = found["spec"]["rayClusterSpec"]
    workers = cluster["workerGroupSpecs"][0]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (workers["minReplicas"], workers["maxReplicas"]) == (1, 2)
    head, worker = pods(found)
    # The driver evaluates on a GPU of its own, and no worker is placed beside it.
    assert head["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert worker["nodeSelector"] == {"cloud.example.com/gpu": "h100"}
    assert worker["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_secrets_come_from_a_secret(laptop: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver alone knows the ledger, and does not start without. Break: write what is set here; optional."""
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("UUDP_LEDGER", f"sqlite:///{tmp_path}/hunter2.db")
    found = written(laptop, tmp_path / "k")
    head, worker = ({one["name"]: one for one in pod["containers"][0]["env"]} for pod in pods(found))
    reference = {"name": "uudp-secrets", "key": "UUDP_LEDGER", "optional": False}
    assert head["UUDP_LEDGER"]["valueFrom"]["secretKeyRef"] == reference
    assert set(worker) == {"RAY_USAGE_STATS_ENABLED", "HF_TOKEN"}
    for path in (tmp_path / "k").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    none = written(laptop, tmp_path / "none", kubernetes={"secret": None})
    assert [one["name"] for one in pods(none)[0]["containers"][0]["env"]] == ["RAY_USAGE_STATS_ENABLED"]


def test_no_private_record_gets_into_an_image(laptop: Laptop, tmp_path: Path) -> None:
    """Break: take --send-data for it."""
    submission = laptop.submission(compute={"kubernetes": {"image": IMAGE}})
    with pytest.raises(ArgumentError, match="holds private records, which don't go into an image"):
        write(check(submission, send_data=True), tmp_path / "k")
    assert not (tmp_path / "k").exists()


def test_the_image_holds_the_same_versions(laptop: Laptop, tmp_path: Path) -> None:
    from importlib.metadata import version

    from harness import __version__

    written(laptop, tmp_path / "k")
    text = (tmp_path / "k" / "Dockerfile").read_text()
    assert f'"ray[default]=={version("ray")}" "uudp[train,postgres]=={__version__}"' in text
    assert f"COPY --chown=ray:ray job/ {kuberay.HOME}/" in text
    assert IMAGE in text


def test_long_and_odd_names_are_kubernetes_own(laptop: Laptop, tmp_path: Path) -> None:
    submission = laptop.submission(name="Mails_2026." + "x" * 60, data=PUBLIC, compute={"kubernetes": {"image": IMAGE}})
    write(check(submission, send_data=True), tmp_path / "k")
    name = yaml.safe_load((tmp_path / "k" / "rayjob.yaml").read_text())["metadata"]["name"]
    assert len(name) <= 47
    assert name.startswith("mails-2026-xxxx")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "uudp: compute.kubernetes: must say what the pods are"),
        (["compute.kubernetes.image=UP/x"], '<command line> compute.kubernetes.image: must'),
        (["compute.kubernetes.image=x", "--out", "."], "uudp: --out: . is there already"),
        (["compute.kubernetes.image=x", "--resume", "20260101-100000-aaaaaa"], "uudp: --resume: goes on with a job"),
    ],
)  # fmt: skip
def test_what_is_refused(laptop: Laptop, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    laptop.spec(data=PUBLIC)
    assert main.run_app(["submit", "mails.yaml", "--to", "kuberay", "--dry-run", *words]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(line), err


def test_the_verb(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    """No address is needed, and nothing is sent. Break: ask for one."""
    laptop.spec(data=PUBLIC)
    words = ["submit", "mails.yaml", f"compute.kubernetes.image={IMAGE}"]
    assert main.run_app([*words, "--to", "kuberay"]) == 2
    assert "is written with --dry-run alone" in capsys.readouterr().err
    assert main.run_app([*words, "--to", "kuberay", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("written: kuberay-mails/rayjob.yaml, kuberay-mails/Dockerfile")
    assert main.run_app([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "nothing was sent (--dry-run)\n"
