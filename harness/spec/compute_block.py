"""What a user can write about machines: it only changes speed, and is never part of the mechanism."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from harness.places import place_problem
from harness.spec.block import Block, whole


class DeepspeedBlock(Block):
    """Sharding."""

    stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(whole)] = Field(default=2, description="ZeRO stage")
    offload: Literal["none", "optimizer", "parameters"] = Field(
        default="none",
        description="what lies in the machine's memory instead of the GPU's: the optimizer's state (stage 1 to 3), or "
        "the parameters too (stage 3)",
    )

    @model_validator(mode="after")
    def _fits(self) -> DeepspeedBlock:
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offload: optimizer needs stage 1, 2 or 3")
        if self.offload == "parameters" and self.stage != 3:
            raise ValueError("offload: parameters needs stage: 3")
        return self


IMAGE = r"^[a-z0-9][A-Za-z0-9._:/@-]{0,299}$"
KUBERNETES_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
MEMORY = r"^[1-9][0-9]{0,5}(Mi|Gi)$"
GPU_TYPE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
KubernetesName = Annotated[str, Field(pattern=KUBERNETES_NAME)]
_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
Workers = Annotated[int, Field(ge=1, le=10_000, strict=True)]


class WorkersBlock(Block):
    """A number of workers that follows what the cluster has, while training goes on."""

    min: Workers = Field(default=1, description="with fewer it waits")
    max: Workers = Field(description="never more")

    @model_validator(mode="after")
    def _ordered(self) -> WorkersBlock:
        if self.min > self.max:
            raise ValueError(f"min: must be at most max ({self.max}), found {self.min}")
        return self


def _place(url: str) -> str:
    if problem := place_problem(url):
        raise ValueError(problem)
    return url


PlaceUrl = Annotated[str, Field(min_length=2, max_length=1000), AfterValidator(_place)]


class PrepareBlock(Block):
    """Who reads, tokenises and groups the users' records; the examples are the same."""

    engine: Literal["auto", "single", "ray"] = Field(
        default="auto",
        description="ray: Ray Data on all cores, resumable, in shards; single: one process; auto: ray for files of "
        "1 GiB and more",
    )
    blocks: Annotated[int, Field(ge=1, le=256, strict=True)] | Literal["auto"] = Field(
        default="auto", description="of ray: about so many parts, and shards, to work at; auto: by the data's size"
    )
    store: PlaceUrl | None = Field(
        default=None,
        description="where the prepared examples lie, so that no machine that trains holds them: s3://BUCKET/PREFIX "
        "(options and keys as of results) or a folder that all machines see; workers read from there what is drawn. "
        "As private as the data, and so is its access log. Left out: in the cache. Data that are prepared already stay "
        "where they are",
    )


class KubernetesBlock(Block):
    """Pods of ``uudp submit --to kuberay``."""

    image: Annotated[str, Field(pattern=IMAGE)] = Field(
        description="of all pods: what is built from the Dockerfile that is written beside the manifest"
    )
    claim: KubernetesName = Field(
        default="uudp-storage", description="the PersistentVolumeClaim (ReadWriteMany) that is compute.storage"
    )
    secret: KubernetesName | None = Field(
        default="uudp-secrets",
        description="the Secret with the ledger's URL (UUDP_LEDGER), PGPASSWORD and the like; null: there is none, and "
        "the default ledger is a file in compute.storage",
    )
    pods: Workers | None = Field(default=None, description="that train; left out: one for each of compute.workers")
    cpus: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(default=4, description="of each pod")
    memory: Annotated[str, Field(pattern=MEMORY)] = Field(default="16Gi", description="of each pod")
    gpus_per_pod: Annotated[int, Field(ge=1, le=64, strict=True)] = Field(
        default=1, description="that trains, with accelerator: cuda; the head has one for itself"
    )
    node_selector: dict[str, str] = Field(
        default={}, description="labels of the nodes for pods that train, as cloud.google.com/gke-accelerator: …"
    )

    @field_validator("node_selector")
    @classmethod
    def _labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(not _LABEL.fullmatch(key) or (value and not _LABEL.fullmatch(value)) for key, value in labels.items()):
            raise ValueError("must map labels of nodes to their values, as cloud.google.com/gke-accelerator: nvidia-l4")
        return labels


class ComputeBlock(Block):
    """What only changes speed: never part of the mechanism."""

    workers: Workers | WorkersBlock = Field(default=1, description="processes that train; {min, max}: as many as fit")
    accelerator: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    gpu_type: Annotated[str, Field(pattern=GPU_TYPE)] | None = Field(
        default=None, description="only GPUs of this kind, as Ray calls them: H100, A100, L4, …"
    )
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = Field(
        default="pack",
        description="of several workers on a cluster: on as few machines as can be, or on as many; strict: on one, or "
        "each on its own, or not at all",
    )
    deepspeed: DeepspeedBlock = DeepspeedBlock()
    microbatch_tokens: Annotated[int, Field(ge=1, le=100_000_000, strict=True)] | Literal["auto"] = Field(
        default="auto",
        description="tokens of a micro-batch, padding included; auto: 1024 on a CPU, on a GPU as many as fit; halved "
        "where it does not fit into memory",
    )
    packing: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: short examples share a row where the model keeps them apart (adapters); off: a row each",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="forget activations and compute them again: less memory, about a third more time"
    )
    prepare: PrepareBlock = PrepareBlock()
    retries: Annotated[int, Field(ge=0, le=1000, strict=True)] = Field(
        default=3,
        description="restarts after a worker's crash (halving a micro-batch that does not fit may take more)",
    )

    storage: Annotated[str, Field(min_length=2, max_length=1000)] | None = Field(
        default=None,
        description="of `uudp submit`: a folder (absolute) that all machines of the cluster see, and that outlives it; "
        "runs, caches and ledgers lie there. Other commands keep runs where --out says",
    )

    results: PlaceUrl | None = Field(
        default=None,
        description="of `uudp submit`: where released files are copied at the end of a run, for `uudp fetch`: "
        "s3://BUCKET/PREFIX (?region=…, ?endpoint_override=HOST:PORT&scheme=http) or a folder; keys are the "
        "environment's",
    )

    kubernetes: KubernetesBlock | None = Field(default=None, description="of `uudp submit --to kuberay`")

    @model_validator(mode="after")
    def _has_gpus(self) -> ComputeBlock:
        if self.gpu_type is not None and self.accelerator == "cpu":
            raise ValueError("gpu_type: needs accelerator: cuda (or auto)")
        return self

    @field_validator("storage")
    @classmethod
    def _absolute(cls, storage: str | None) -> str | None:
        if storage is not None and (
            not storage.startswith("/") or ".." in storage.split("/") or not storage.isprintable()
        ):
            raise ValueError("must be an absolute path on the cluster, as /mnt/shared/uudp, without ..")
        return storage

    @property
    def fewest_workers(self) -> int:
        """So many it takes to train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def most_workers(self) -> int:
        """So many there may be."""
        return self.workers if isinstance(self.workers, int) else self.workers.max
