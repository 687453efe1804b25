"""DeepSpeed as the optimizer's home: sharded states and parameters, and nothing that touches the mechanism.

DeepSpeed would average gradients over ranks, clip them by its own norm and, under fp16, skip steps. None of it can
happen here: the gradients that it reduces are exact zeros (`gradients.py`), its clipping is off, its fp16 is never
on, and the private mean gradient is set after its reduction, the same on every rank.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.planning.footprint import BUCKET
from harness.spec.models import OptimizerBlock
from harness.training.gathered import Gathered
from harness.training.gradients import UnitGradients
from harness.training.ranks import own_ranks

Offload = Literal["none", "optimizer", "parameters"]
STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer")


class Parameter(Protocol):
    """One trained parameter and where its coordinates lie in a flat gradient."""

    @property
    def name(self) -> str:
        """Its name in the model."""
        ...

    @property
    def parameter(self) -> nn.Parameter:
        """Itself; empty while ZeRO-3 has it partitioned."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its whole shape."""
        ...

    @property
    def size(self) -> int:
        """Number of coordinates."""
        ...

    def view(self, flat: Tensor) -> Tensor:
        """Its part of a flat gradient, in its shape."""
        ...


class _Calling(nn.Module):
    """Lets a function compute with the model in one call of DeepSpeed's engine."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[nn.Module], Tensor]) -> Tensor:
        return compute(self.model)


def make_optimizer(block: OptimizerBlock, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer that a spec asks for. Weight decay is 0 unless the spec says otherwise."""
    settings: dict[str, Any] = {"lr": block.lr, "weight_decay": block.weight_decay or 0.0}
    if block.type == "sgd":
        return torch.optim.SGD(parameters, momentum=block.momentum or 0.0, **settings)
    if block.betas is not None:
        settings["betas"] = block.betas
    if block.eps is not None:
        settings["eps"] = block.eps
    return (torch.optim.AdamW if block.type == "adamw" else torch.optim.Adam)(parameters, **settings)


def deepspeed_config(stage: int, offload: Offload = "none") -> dict[str, Any]:
    """DeepSpeed's configuration: sharding alone, and silent (its throughput lines would be private)."""
    sharding: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # DeepSpeed's own bucket is made for the largest models, and a small one's whole gradient would lie in it.
        sharding["reduce_bucket_size"] = BUCKET
    if offload != "none":
        sharding["offload_optimizer"] = {"device": "cpu"}
    if offload == "parameters":
        sharding["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "fp16": {"enabled": False},
        # The model is used in its own dtypes: with this flag DeepSpeed would cast the float32 adapters.
        "bf16": {"enabled": False},
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A model under DeepSpeed whose trainable parameters move only by `step` with a given gradient."""

    def __init__(
        self,
        model: nn.Module,
        trainables: Sequence[Parameter],
        optimizer: OptimizerBlock,
        stage: int,
        offload: Offload = "none",
        *,
        calling: bool = False,
    ) -> None:
        """Hands model and optimizer to DeepSpeed. Collective: every rank calls it; torch.distributed must be up.

        With `calling`, gradients are those of `accumulate` and `step_reduced`; without, of `backward` and `step`.
        """
        import deepspeed

        # Compiling DeepSpeed's shared-memory collectives takes a minute, and a kill in it hangs the next start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.trainables = tuple(trainables)
        self.stage = stage
        parameters = [t.parameter for t in self.trainables]
        self._engine, *_ = deepspeed.initialize(
            model=_Calling(model) if calling else model,
            optimizer=make_optimizer(optimizer, parameters),
            config=deepspeed_config(stage, offload),
            dist_init_required=False,
        )
        if self._engine.gradient_clipping() or self._engine.fp16_enabled():
            raise RuntimeError("DeepSpeed would change the mechanism: its clipping or loss scaling is on")

    @property
    def module(self) -> nn.Module:
        """The model."""
        module: nn.Module = self._engine.module
        return module.model if isinstance(module, _Calling) else module

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        device: torch.device = self._engine.device
        return device

    def backward(self, loss_of: Any, sink: UnitGradients, *, last: bool) -> None:
        """Runs one micro-batch: forward, and backward into `sink`.

        Args:
            loss_of: Function of a model that returns the micro-batch's loss.
            sink: What collects the units' gradients.
            last: The step's last micro-batch; it also fills DeepSpeed's gradient buffers, with zeros.
        """
        if last:
            sink.hand_zeros_to_optimizer = True
            try:
                self._engine.set_gradient_accumulation_boundary(True)
                self._engine.backward(loss_of(self._engine))
            finally:
                sink.hand_zeros_to_optimizer = False
        else:
            torch.autograd.backward(loss_of(self.module))
        self._forget_other_orders()

    def set_learning_rate(self, value: float) -> None:
        """Of the steps from here on."""
        for group in self._optimizer().param_groups:
            group["lr"] = value

    def step(self, gradient: Tensor) -> None:
        """Steps the optimizer on this flat gradient (float32, [coordinates]), the same on every rank; collective.

        Raises:
            UserError: DeepSpeed left the step out, as it does where a gradient's norm is beyond the numbers: what is
                trained would no longer be what was accounted.
        """
        self._step_on(lambda trainable: trainable.view(gradient))

    def _step_on(self, gradient_of: Callable[[Parameter], Tensor]) -> None:
        from deepspeed.utils import safe_set_full_grad, safe_set_local_grad

        for trainable in self.trainables:
            parameter, value = trainable.parameter, gradient_of(trainable)
            if self.stage == 0:
                parameter.grad = value.to(parameter.dtype).clone()
            elif self.stage == 3:
                safe_set_local_grad(parameter, _own_part(parameter, value))
            else:
                safe_set_full_grad(parameter, value)
        self._take_step()

    def _take_step(self) -> None:
        self._engine.step()
        if self._engine.skipped_steps:
            raise UserError("a step's noisy gradient is beyond float32 and was left out; try a smaller clipping.norm")

    def accumulate(self, loss_of: Callable[[nn.Module], Tensor], *, last: bool) -> None:
        """Adds one micro-batch's gradient to what DeepSpeed holds, which is the mean over workers; collective.

        Args:
            loss_of: Function of the model that returns the loss. DeepSpeed watches the backward pass from the loss
                alone: passes that are not for its eyes belong in here.
            last: The step's last micro-batch.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(self._engine(loss_of))
        self._forget_other_orders()

    def _forget_other_orders(self) -> None:
        """At ZeRO 3, while DeepSpeed learns anew in which order layers run: drops what it kept of another order.

        Which weights a layer lets go of is decided once for each place in the order, and never looked at again. After
        passes without a backward one (an evaluation, the look at a new model) all weights would be let go of after the
        forward pass and gathered twice in every step, as long as the run lasts.
        """
        if self.stage != 3:
            return
        coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
        decides = getattr(coordinator, "_PartitionedParameterCoordinator__params_to_release", None)
        if decides is not None and coordinator.is_record_trace():
            for kept in inspect.getclosurevars(decides).nonlocals.values():  # it is wrapped, for a profiler
                if hasattr(kept, "cache_clear"):
                    kept.cache_clear()

    def step_reduced(self, noisy: Callable[[str, int, Tensor], Tensor]) -> None:
        """Steps the optimizer on what DeepSpeed has accumulated; collective.

        Args:
            noisy: Makes of each stretch what the optimizer may see: of (parameter's name, its first coordinate there,
                the stretch [coordinates]), a tensor of the same shape. Each rank's stretches are those that its
                optimizer steps on; together they are everything.

        Raises:
            UserError: See `step`.
        """
        for trainable in self.trainables:
            for start, part in self._own_stretch(trainable):
                part.copy_(noisy(trainable.name, start, part.detach().clone()))
        self._take_step()

    def _own_stretch(self, trainable: Parameter) -> Iterator[tuple[int, Tensor]]:
        """What this rank's optimizer steps on of a parameter's gradient: its first coordinate, and a flat view."""
        from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

        parameter: Any = trainable.parameter
        if self.stage == 0:
            yield 0, parameter.grad.view(-1)
        elif self.stage == 3:
            held = safe_get_local_grad(parameter).detach().view(-1).clone()
            start = own_ranks().rank * held.numel()
            own = min(held.numel(), trainable.size - start)
            if own > 0:  # the last ranks' stretches may be padding, in part or whole
                yield start, held[:own]
                safe_set_local_grad(parameter, held)
        elif parameter._hp_mapping is not None:
            held = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
            address = parameter._hp_mapping.lp_fragment_address
            if held.numel() != address.numel:
                raise RuntimeError(f"DeepSpeed holds another stretch of {trainable.name} than it says")
            yield address.start, held.view(-1)

    def gradient(self) -> Tensor:
        """What the optimizer would step on now, as DeepSpeed holds it: flat, [coordinates]; collective."""
        from deepspeed.utils import safe_get_full_grad

        parts: list[Any] = [
            t.parameter.grad if self.stage == 0 else safe_get_full_grad(t.parameter) for t in self.trainables
        ]
        return torch.cat([p.detach().reshape(-1).float().cpu() for p in parts])

    def gradient_of(self, trainable: Parameter) -> Tensor:
        """A parameter's part of that, in its shape, on the device; collective."""
        from deepspeed.utils import safe_get_full_grad

        parameter: Any = trainable.parameter
        held: Any = parameter.grad if self.stage == 0 else safe_get_full_grad(parameter)
        return held.detach().float().reshape(trainable.shape)  # type: ignore[no-any-return]

    def forget_gradient(self) -> None:
        """The micro-batches since the last step have never been; above stage 0."""
        self._engine.optimizer.zero_grad()

    def parameters(self) -> Mapping[str, Tensor]:
        """The trainable weights by name, whole, float32, each gathered when it is looked up, which is collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        known = {t.name: t for t in self.trainables}

        def gather(name: str) -> Tensor:
            trainable = known[name]
            parameter = trainable.parameter
            value: Any = parameter if self.stage == 0 else safe_get_full_fp32_param(parameter)
            return value.detach().float().reshape(trainable.shape)  # type: ignore[no-any-return]

        return Gathered(list(known), gather)

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def optimizer_state(self) -> tuple[Mapping[str, Tensor], int]:
        """The optimizer's state by name (``exp_avg/<parameter>``), as `parameters`, and its step count."""
        from deepspeed.utils import safe_get_full_optimizer_state

        optimizer = self._optimizer()
        known = {f"{kind}/{t.name}": (kind, t) for kind in self._state_kinds() for t in self.trainables}

        def gather(name: str) -> Tensor:
            kind, trainable = known[name]
            parameter = trainable.parameter
            value: Any = (
                optimizer.state[parameter][kind] if self.stage == 0 else safe_get_full_optimizer_state(parameter, kind)
            )
            return value.detach().float().reshape(trainable.shape)  # type: ignore[no-any-return]

        steps = [int(s["step"]) for s in optimizer.state.values() if "step" in s]
        return Gathered(list(known), gather), max(steps, default=0)

    def _state_kinds(self) -> tuple[str, ...]:
        held = {k for s in self._optimizer().state.values() for k, v in s.items() if v is not None}
        return tuple(k for k in STATES if k in held)

    def restore(self, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], steps: int, idle: Any) -> None:
        """Puts weights and optimizer back, at any stage and number of workers; collective.

        Args:
            parameters: As `parameters` gave them; each is looked up once.
            state: As `optimizer_state` gave it; the same.
            steps: The optimizer's step count.
            idle: Function that runs one empty micro-batch.
        """
        self._set_weights(parameters)
        # Only a step brings DeepSpeed's master weights into the model, and makes the optimizer's state. So one is
        # taken that changes nothing: with a zero gradient and a learning rate of zero.
        optimizer = self._optimizer()
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        idle()
        self._step_on(lambda trainable: torch.zeros(trainable.shape, device=self.device))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._set_state(state, steps)

    def _set_weights(self, parameters: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for trainable in self.trainables:
            weight = parameters[trainable.name]
            if self.stage == 0:
                trainable.parameter.data.copy_(weight)
            elif self.stage == 3:
                safe_set_local_fp32_param(trainable.parameter, _own_part(trainable.parameter, weight))
            else:
                safe_set_full_fp32_param(trainable.parameter, weight.to(self.device))

    def _set_state(self, state: Mapping[str, Tensor], steps: int) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        optimizer = self._optimizer()
        for held in optimizer.state.values():
            if "step" in held:
                held["step"] = torch.full_like(held["step"], float(steps))
        for kind in self._state_kinds():
            for trainable in self.trainables:
                # Before the first step there was none, and the one that changes nothing has left weight decay in it.
                name, parameter = f"{kind}/{trainable.name}", trainable.parameter
                value = state[name] if name in state else torch.zeros(trainable.shape)
                if self.stage == 0:
                    optimizer.state[parameter][kind].copy_(value)
                elif self.stage == 3:
                    safe_set_local_optimizer_state(parameter, _own_part(parameter, value), kind)
                else:
                    safe_set_full_optimizer_state(parameter, value.to(self.device), kind)


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of what belongs to a parameter that ZeRO-3 has divided: flat, padded with zeros."""
    size = parameter.ds_tensor.numel()
    start = own_ranks().rank * size
    own = value.reshape(-1)[start : start + size].to(parameter.ds_tensor.device, torch.float32)
    return torch.nn.functional.pad(own, (0, size - own.numel()))
