"""Moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of the trainable parameters of a model.

    Frozen weights and buffers are the model's own, so a large frozen backbone costs no memory.

    Args:
        model: averaged from its present weights on.
        decay: fraction of the old average kept in each update, above 0 and below 1. It is reached
            gradually, so that the initial weights do not linger in a short run: update number n
            uses at most (1 + n) / (10 + n).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        assert 0 < decay < 1, decay
        self.model = model
        self.decay = decay
        self.updates = 0
        self.averages = {name: p.detach().clone() for name, p in self._trainable().items()}

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def reset(self) -> None:
        """Starts again from the model's present weights, after these were loaded."""
        self.updates = 0
        self._copy({name: p.detach() for name, p in self._trainable().items()})

    @torch.no_grad()
    def update(self) -> None:
        """Mixes the model's present weights in; call it once per optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = self._trainable()
        averages = [self.averages[name] for name in parameters]
        get_ema_multi_avg_fn(decay)(averages, list(parameters.values()), self.updates)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lends the averages to the model; its own weights come back at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._trainable().items():
            own = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        if weights.keys() != self.averages.keys():
            raise ValueError(
                "the checkpoint averages other weights than the model trains; they differ in "
                f"{sorted(weights.keys() ^ self.averages.keys())}. Check MODEL.FREEZE."
            )
        for name, average in self.averages.items():
            average.copy_(weights[name])

    def state_dict(self) -> dict[str, object]:
        """Returns the averages by parameter name, and how often they were updated."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        """Takes over the averages of an earlier run."""
        self._copy(state["averages"])
        self.updates = state["updates"]
