"""One seed for all random states."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*numbers: int) -> None:
    """Sets the random states of Python, NumPy and PyTorch from some numbers that are >= 0."""
    python, numpy, low, high = np.random.SeedSequence(numbers).generate_state(4).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(low | high << 32)
