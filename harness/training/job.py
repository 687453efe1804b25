"""What a worker is told: the path of a run's folder, and everything else read from its private part.

Nothing private travels through Ray: its configuration, logs and dashboard see a path.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.errors import MachineError
from harness.files import as_json, write_private
from harness.privacy.mechanism import Mechanism
from harness.spec.models import Spec


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        spec: The validated spec.
        mechanism: What to execute.
        epsilon_by_step: Points (steps, ε spent) of the public curve.
        corpus: Folder of the Arrow corpus.
        base: Folder of the base model.
        device: ``cpu`` or ``cuda``.
        holdout_users: Per group, the public expected number of hold-out users, who are private (a declared constant; 0
            where a group has none). None: hold-out users are public, or there are none.
    """

    spec: Spec
    mechanism: Mechanism
    epsilon_by_step: tuple[tuple[int, float], ...]
    corpus: Path
    base: Path
    device: str
    holdout_users: tuple[float, ...] | None = None

    def save(self, run_dir: Path) -> None:
        """Writes it into the run's private folder."""
        document = {
            "spec": self.spec.model_dump(mode="json"),
            "mechanism": self.mechanism.to_dict(),
            "epsilon_by_step": self.epsilon_by_step,
            "corpus": str(self.corpus),
            "base": str(self.base),
            "device": self.device,
            "holdout_users": self.holdout_users,
        }
        write_private(Folder(run_dir).private / "job.json", as_json(document).encode())

    @classmethod
    def load(cls, run_dir: Path) -> Job:
        """Reads it back."""
        path = Folder(run_dir).private / "job.json"
        try:
            document = json.loads(path.read_text())
            held = document["holdout_users"]
            return cls(
                spec=Spec.model_validate(document["spec"], strict=False),
                mechanism=Mechanism.from_dict(document["mechanism"]),
                epsilon_by_step=tuple((int(t), float(e)) for t, e in document["epsilon_by_step"]),
                corpus=Path(document["corpus"]),
                base=Path(document["base"]),
                device=document["device"],
                holdout_users=None if held is None else tuple(float(n) for n in held),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MachineError(f"{path} is damaged ({type(error).__name__})") from None

    def epsilon_after(self, steps: int) -> float | None:
        """ε spent after so many steps, never too small (the curve's next point); None for a run without privacy."""
        if not self.mechanism.private:
            return None
        return next(e for t, e in self.epsilon_by_step if t >= steps)


RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def new_run_id() -> str:
    """The id of a new run: when it was begun (UTC), and something that no other has."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Folder:
    """Where things lie in a run's folder."""

    root: Path

    @property
    def private(self) -> Path:
        """Readable by the owner alone: the key, checkpoints, diagnostics."""
        return self.root / "private"

    @property
    def key(self) -> Path:
        """The run's secret key, while the run lasts."""
        return self.private / "key"

    @property
    def lease(self) -> Path:
        """Locked by the process that drives the run."""
        return self.private / "lease"

    @property
    def worker_lease(self) -> Path:
        """Locked by the workers' first rank while it trains: they can outlive their driver on a shared cluster."""
        return self.private / "worker-lease"

    @property
    def metrics(self) -> Path:
        """Released metrics."""
        return self.root / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """The trained model, where all parameters are trained and there is no adapter."""
        return self.root / "model"

    def trained(self, adapter: str) -> Path:
        """What a run with this type of adapter makes."""
        return self.model if adapter == "full" else self.adapter

    @property
    def members(self) -> Path:
        """Which training user is in which group. Private."""
        return self.private / "groups.npy"

    @property
    def views(self) -> Path:
        """How the base model sees each user, until the run ends. Private."""
        return self.private / "views"

    @property
    def canaries(self) -> Path:
        """What was planted for an audit, and which of it is in the training. Private until the audit is over."""
        return self.private / "canaries.json"

    @property
    def observed(self) -> Path:
        """What every noisy sum shows of the canaries' directions, step by step."""
        return self.private / "observed.jsonl"

    @property
    def progress(self) -> Path:
        """How far training is, for the driver's progress line."""
        return self.private / "progress.json"

    @property
    def failure(self) -> Path:
        """Why a worker gave up, if it did for a reason that the user can act on."""
        return self.private / "failure.json"

    @property
    def microbatch(self) -> Path:
        """What was chosen as `compute.microbatch_tokens`, or left of it where it did not fit. Private."""
        return self.private / "microbatch.json"

    @property
    def stop(self) -> Path:
        """Its presence asks the workers to stop at the next step, with a checkpoint."""
        return self.private / "stop"

    def checkpoints(self, series: str) -> Path:
        """Checkpoints of one training series."""
        return self.private / "checkpoints" / series


@dataclass(frozen=True)
class Failure:
    """A worker's reason to give up.

    Attributes:
        message: Holds nothing private.
        exit_code: Of the command.
        stuck: Of what this machine can't run: whether it is by what this training is itself (`StuckError`).
    """

    message: str
    exit_code: int
    stuck: bool = False

    @property
    def of_the_machine(self) -> bool:
        """Whether any other training might have ended in the same way, now and here."""
        return self.exit_code == MachineError.exit_code and not self.stuck

    def save(self, run_dir: Path) -> None:
        """Leaves it for the driver."""
        write_private(Folder(run_dir).failure, as_json(asdict(self)).encode())

    @classmethod
    def load(cls, run_dir: Path) -> Failure | None:
        """What a worker left, if anything."""
        path = Folder(run_dir).failure
        return cls(**json.loads(path.read_text())) if path.exists() else None


def dropped_place(number: int) -> int:
    """What stands for the group that is the spec's so-many-th to drop, where groups are indices (-1: any other)."""
    return -2 - number


def halvings(microbatch_tokens: int, max_tokens: int) -> int:
    """How often a micro-batch can be halved until it holds one example."""
    count = 0
    while microbatch_tokens > max_tokens:
        microbatch_tokens = max(max_tokens, microbatch_tokens // 2)
        count += 1
    return count
