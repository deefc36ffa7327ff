"""The recorded inputs of single-stage methods, see golden/modern/README.md."""

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden" / "modern"
INPUTS = np.load(GOLDEN / "inputs.npz")


def recorded(name):
    return np.load(GOLDEN / f"{name}.npz")


def images(*names):
    """(B, 3, H, W) float32 in 0..255."""
    return torch.tensor(np.stack([INPUTS[f"picture_{name}"] for name in names])).permute(0, 3, 1, 2).float()


def maps(*names):
    """(B, K, H, W) float32, probabilities."""
    return torch.tensor(np.stack([INPUTS[f"map_{name}"] for name in names])).float() / 256
