"""One optimiser step over several micro-batches.

The loss is normalised over the whole step: its normalisers (`LossCounts`) are added up over the
micro-batches and processes before the first forward pass, so the losses of the micro-batches add
up to that of one large batch. 4 micro-batches of 2 are 1 batch of 8, however unevenly the
forged regions are spread.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from loupe.solver import gradient_norm
from loupe.trainer.randomness import seed_everything

Batch = list[dict[str, Any]]

AUTOCAST_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingStep:
    """Model, data and optimiser, and the step that ties them together.

    It owns autocast, because Detectron2's `AMPTrainer` insists on CUDA.

    Args:
        model: `model(batch, counts=...)` gives weighted losses, `model.loss_counts(batch)` their
            normalisers; may be wrapped in DistributedDataParallel.
        data_loader: endless, yields the micro-batches of this process.
        optimizer: of the model's trainable parameters.
        seed: of the run, the same on all processes. Every step draws from random states made
            of (seed, iteration, process), so nothing before a step, nor an interruption, changes
            what it draws.
        accumulation_steps: micro-batches in one optimiser step.
        autocast_type: torch.bfloat16, torch.float16 (CUDA only, with loss scaling), or None.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        accumulation_steps: int,
        autocast_type: torch.dtype | None,
    ) -> None:
        self.model = model.train()
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.autocast_type = autocast_type
        self.device = next(model.parameters()).device
        self.scales_loss = autocast_type is torch.float16
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.scales_loss)
        self._batches: Iterator[Batch] | None = None

    def run(self, iteration: int) -> None:
        """Does optimiser step number `iteration`, counted from 0, and logs its losses.

        Raises:
            FloatingPointError: on every process, if the loss is not finite on one of them.
                The weights are still those of the step before.
        """
        assert self.model.training, "the model was left in evaluation mode"
        start = time.perf_counter()
        batches = self._next_batches(iteration)
        data_time = time.perf_counter() - start
        counts = self._step_counts(batches)
        seed_everything(self.seed, iteration, comm.get_rank())
        self.optimizer.zero_grad(set_to_none=True)
        losses = [
            self._backward(batch, counts, synchronise=batch is batches[-1]) for batch in batches
        ]
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(p for group in self.optimizer.param_groups for p in group["params"])
        scalars = self._reduce(losses, norm)
        self._stop_unless_finite(iteration, scalars, losses, batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._log(scalars, data_time)

    def _next_batches(self, iteration: int) -> list[Batch]:
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batches = list(itertools.islice(self._batches, self.accumulation_steps))
        if len(batches) < self.accumulation_steps:
            raise RuntimeError(
                f"the training data ended at iteration {iteration}; the loader must be endless."
            )
        return batches

    def _step_counts(self, batches: list[Batch]) -> Tensor:
        """Returns the `LossCounts` of the whole step as one process has to see them, float64."""
        model: Any = self.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
        counts = functools.reduce(torch.add, map(model.loss_counts, batches))
        # Gradients are averaged over the processes, so each normalises by the average.
        return _mean_over_processes(counts, self.device)

    def _backward(self, batch: Batch, counts: Tensor, *, synchronise: bool) -> dict[str, Tensor]:
        with self._synchronisation(synchronise):
            with torch.autocast(
                self.device.type, self.autocast_type, enabled=self.autocast_type is not None
            ):
                losses = self.model(batch, counts=counts)
            self.scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _synchronisation(self, synchronise: bool) -> AbstractContextManager[None]:
        # Processes exchange gradients once per step, in the last micro-batch's backward pass.
        if synchronise or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _reduce(self, losses: list[dict[str, Tensor]], norm: Tensor) -> dict[str, float]:
        """Returns the step's loss terms, averaged over processes, and the gradient norm."""
        names = sorted(losses[0])
        sums = [functools.reduce(torch.add, (terms[k] for terms in losses)) for k in names]
        values = torch.stack([*(s.double() for s in sums), norm.to(self.device, torch.float64)])
        # One transfer from the device for all of them.
        means = _mean_over_processes(values, self.device).tolist()
        return dict(zip([*names, "gradient_norm"], means, strict=True))

    def _stop_unless_finite(
        self,
        iteration: int,
        scalars: dict[str, float],
        losses: list[dict[str, Tensor]],
        batches: list[Batch],
    ) -> None:
        # With loss scaling gradients may overflow: the scaler then skips the step by itself.
        watched = [k for k in scalars if not (self.scales_loss and k == "gradient_norm")]
        if all(math.isfinite(scalars[name]) for name in watched):
            return
        bad = [n for n, terms in enumerate(losses) if not all(map(torch.isfinite, terms.values()))]
        files = [item["file_name"] for n in bad or range(len(batches)) for item in batches[n]]
        reports = comm.all_gather((comm.get_rank(), bool(bad), files))
        # Where only gradients overflowed, no micro-batch is to blame more than another.
        blamed = [r for r in reports if r[1]] or reports
        terms = ", ".join(f"{name} = {value:.6g}" for name, value in scalars.items())
        images = "\n".join(f"process {rank}: {', '.join(names)}" for rank, _, names in blamed)
        raise FloatingPointError(
            f"The loss or its gradient is not finite at iteration {iteration}. Training stops; "
            f"the last checkpoint is from before.\nTerms (mean over processes): {terms}\n"
            f"Images of the micro-batches concerned:\n{images}\n"
            "Lower SOLVER.BASE_LR, or look at these images and their masks."
        )

    def _log(self, scalars: dict[str, float], data_time: float) -> None:
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        total = sum(value for name, value in scalars.items() if name != "gradient_norm")
        storage.put_scalars(data_time=data_time, total_loss=total)
        if math.isfinite(scalars["gradient_norm"]):
            storage.put_scalar("gradient_norm", scalars["gradient_norm"])
        storage.put_scalars(**{k: v for k, v in scalars.items() if k != "gradient_norm"})
        if self.scales_loss:
            storage.put_scalar("loss_scale", self.scaler.get_scale(), smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs besides weights and iteration."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.scaler.state_dict(),
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over an earlier run's state, all but its place in the data."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["grad_scaler"])
        self.seed = state["seed"]

    def use_data(self, data_loader: Iterable[Batch]) -> None:
        """Goes on with another loader."""
        self.data_loader = data_loader
        self._batches = None


def autocast_type(cfg: CfgNode) -> torch.dtype | None:
    """Returns the type of mixed precision that the config asks for; None = float32 throughout.

    On a CPU that cannot compute in bfloat16 it is None, too, with a warning: PyTorch would emulate
    it, at a tenth of the speed of float32.

    Raises:
        ValueError: float16 without CUDA.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    device = torch.device(cfg.MODEL.DEVICE).type
    if name == "float16" and device != "cuda":
        raise ValueError(
            f"SOLVER.AMP.DTYPE float16 needs loss scaling on CUDA, but MODEL.DEVICE is {device!r}. "
            "Set SOLVER.AMP.DTYPE bfloat16."
        )
    if device == "cpu" and not _has_bfloat16():
        logging.getLogger(__name__).warning(
            "This processor has no bfloat16: training in float32 instead, which is faster here. "
            "SOLVER.AMP.ENABLED False says the same without this warning."
        )
        return None
    return AUTOCAST_TYPES[name]


def _has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; True where PyTorch does not say."""
    # From PyTorch 2.12 on.
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    known = [found[name] for name in ("avx512_bf16", "amx_bf16") if name in found]
    return any(known) or not known


def _mean_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """Averages over all processes; the result is on the device where `values` were."""
    if comm.get_world_size() == 1:
        return values
    # NCCL only moves tensors on the GPU.
    reduced = values.to(device)
    dist.all_reduce(reduced)
    return (reduced / comm.get_world_size()).to(values.device)
