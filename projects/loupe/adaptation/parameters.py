"""Which parameters adapt, and for which the backward pass must run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from loupe.modeling.segmenter import Segmenter

NORMS = (nn.LayerNorm, nn.GroupNorm)


def chosen_parameters(segmenter: Segmenter, parameters: str) -> list[nn.Parameter]:
    """The parameters that adapt: all ("segmenter"), or those of the norms ("norms")."""
    if parameters == "segmenter":
        return list(segmenter.parameters())
    norms = [module for module in segmenter.modules() if isinstance(module, NORMS)]
    return [parameter for norm in norms for parameter in norm.parameters()]


def graph_parameters(segmenter: Segmenter, parameters: str) -> list[nn.Parameter]:
    """The chosen parameters, and those that only keep the backward pass alive.

    torch 2.12's GroupNorm crashes on the CPU if its weight needs a gradient and its input does not.
    If only norms adapt, a small parameter of the convolution before each one makes the input need
    it.
    """
    chosen = chosen_parameters(segmenter, parameters)
    if parameters == "segmenter":
        return chosen
    decoder = segmenter.pixel_decoder
    before = [projection[0] for projection in (*decoder.input_projections, decoder.lateral)]
    return chosen + [conv.weight if conv.bias is None else conv.bias for conv in before]


@contextmanager
def gradients_for(segmenter: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets only these parameters of a segmenter need gradients, so that no other graph is built."""
    needed = {id(parameter) for parameter in parameters}
    before = [parameter.requires_grad for parameter in segmenter.parameters()]
    for parameter in segmenter.parameters():
        parameter.requires_grad_(id(parameter) in needed)
    try:
        yield
    finally:
        for parameter, needs in zip(segmenter.parameters(), before, strict=True):
            parameter.requires_grad_(needs)
