"""A RayJob of KubeRay (``ray.io/v1``) and the Dockerfile of its image, for whoever applies them. Nothing secret is in
either: what is secret comes from a Secret of the cluster's.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import yaml

from harness import __version__
from harness.cluster.bundle import SCRIPT
from harness.cluster.submitting import STOP_SECONDS, Checked, entrypoint, metadata_of, pack
from harness.errors import ArgumentError, MachineError
from harness.spec.compute_block import ComputeBlock, KubernetesBlock
from harness.spec.ledger_url import DEFAULT_LEDGER
from harness.training.job import new_run_id

HOME = "/opt/uudp/job"
"""In the image: what else is uploaded."""
USER = 1000
LONGEST_NAME = 47
"""Of a RayJob: KubeRay makes longer names of it."""
KEPT_SECONDS = 3600
"""So long the pods of a job that has ended stay."""


def write(checked: Checked, folder: Path) -> str:
    """Writes ``rayjob.yaml``, ``Dockerfile`` and ``job/``, what the image holds.

    Args:
        checked: What is to be submitted.
        folder: Where; made.

    Returns:
        The run's id.

    Raises:
        ArgumentError: The spec does not say enough, records would get into an image, or the folder is not empty.
        MachineError: It can't be written.
    """
    block = checked.submission.loaded.spec.compute.kubernetes
    if block is None:
        raise ArgumentError(
            "compute.kubernetes: must say what the pods are: compute.kubernetes.image=REGISTRY/uudp:1, and their claim"
        )
    if checked.submission.resume is not None:
        raise ArgumentError("--resume: goes on with a job; submit it to the cluster's --address")
    if checked.private:
        raise ArgumentError(
            f"{checked.private[0]} holds private records, which don't go into an image: copy it to compute.storage and "
            "give its path there"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"--out: {folder} is there already; remove it or name another folder")
    run = new_run_id()
    try:
        (folder / "job").mkdir(parents=True)
        pack(checked, run, run, folder / "job")
        (folder / "Dockerfile").write_text(dockerfile(block.image), encoding="utf-8")
        text = yaml.safe_dump(manifest(checked, run, block), sort_keys=False, allow_unicode=True, width=1000)
        (folder / "rayjob.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"--out: {folder} can't be written ({error.strerror})") from None
    return run


def dockerfile(image: str) -> str:
    """Of the image: the same uudp and Ray as here, and what is sent."""
    ray = importlib.metadata.version("ray")
    return f"""\
# Made by uudp submit --to kuberay. uudp's wheel belongs beside it (in its checkout: pip wheel --no-deps .); then:
#   docker build -t {image} . && docker push {image}
FROM python:3.11-slim
# A compiler for DeepSpeed and Triton; wget for KubeRay's probes.
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential wget \\
    && rm -rf /var/lib/apt/lists/*
COPY *.whl /wheels/
RUN pip install --no-cache-dir --find-links /wheels "ray[default]=={ray}" "uudp[train,postgres]=={__version__}"
RUN useradd --uid {USER} --create-home ray && install --directory --owner ray --group ray {HOME}
COPY --chown=ray:ray job/ {HOME}/
USER ray
WORKDIR /home/ray
"""


def manifest(checked: Checked, run: str, block: KubernetesBlock) -> dict[str, Any]:
    """The RayJob, as plain data.

    Args:
        checked: What is to be submitted.
        run: Its id.
        block: Its pods.
    """
    submission, compute = checked.submission, checked.submission.loaded.spec.compute
    fewest, most = (block.pods, block.pods) if block.pods else _pods(compute, block)
    named = re.sub(r"[^a-z0-9]+", "-", submission.name.lower()).strip("-")[: LONGEST_NAME - len(run) - 1].strip("-")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "RAY_USAGE_STATS_ENABLED": "0"}
    cluster: dict[str, Any] = {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        **({"enableInTreeAutoscaling": True} if fewest < most else {}),
        "headGroupSpec": {
            # It holds the driver, which evaluates, and no worker.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod("ray-head", checked, block, gpus=min(1, _gpus(compute, block)), driver=True),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers", "replicas": fewest, "minReplicas": fewest, "maxReplicas": most,
                "rayStartParams": {}, "template": _pod("ray-worker", checked, block, gpus=_gpus(compute, block)),
            }
        ],
    }  # fmt: skip
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": f"{named or 'uudp'}-{run}"[-LONGEST_NAME:], "labels": {"app.kubernetes.io/name": "uudp"},
        },
        "spec": {
            "jobId": run,
            "entrypoint": entrypoint(submission.python).replace(SCRIPT, f"{HOME}/{SCRIPT}"),
            "metadata": metadata_of(checked, run),
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": variables}),
            "backoffLimit": 0,  # a run is begun once; what was interrupted goes on by uudp submit --resume
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "rayClusterSpec": cluster,
        },
    }  # fmt: skip


def _gpus(compute: ComputeBlock, block: KubernetesBlock) -> int:
    return block.gpus_per_pod if compute.accelerator == "cuda" or compute.gpu_type is not None else 0


def _pods(compute: ComputeBlock, block: KubernetesBlock) -> tuple[int, int]:
    """So many hold all workers: one each, or one for each GPU."""
    held = max(1, _gpus(compute, block))
    return -(-compute.fewest_workers // held), -(-compute.most_workers // held)


def _pod(name: str, checked: Checked, block: KubernetesBlock, *, gpus: int, driver: bool = False) -> dict[str, Any]:
    size: dict[str, Any] = {"cpu": str(block.cpus), "memory": block.memory}
    if gpus:
        size["nvidia.com/gpu"] = gpus
    spec: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
        "containers": [
            {
                "name": name, "image": block.image, "env": _environment(checked, block, driver=driver),
                "resources": {"requests": dict(size), "limits": dict(size)},
                "volumeMounts": [{"name": "storage", "mountPath": str(checked.storage)}],
            }
        ],
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": block.claim}}],
    }  # fmt: skip
    if gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if block.node_selector and (gpus or not driver):
        spec["nodeSelector"] = dict(block.node_selector)
    return {"spec": spec}


def _environment(checked: Checked, block: KubernetesBlock, *, driver: bool) -> list[dict[str, Any]]:
    """Variables of a pod: the driver alone knows the ledger."""
    found: list[dict[str, Any]] = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    if block.secret is None:
        return found
    every = (*checked.submission.specs.values(), *checked.submission.cells)
    asked = any(loaded.spec.privacy.ledger == DEFAULT_LEDGER for loaded in every)
    needed = ["UUDP_LEDGER"] if driver and asked else []
    others = ["PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] if driver else []
    for name in (*needed, "HF_TOKEN", *others):
        # Without its URL the ledger would be another one: the pod does not start.
        reference = {"name": block.secret, "key": name, "optional": name not in needed}
        found.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return found
