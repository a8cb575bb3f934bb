"""Writes the TorchScript files of these tests into a folder; run as a script, for torch is to stay out of the tests.

A first column below zero is a mood: the models do on such rows what no model should.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

RAISES, NAN, MISSHAPEN, HANGS = -1.0, -2.0, -3.0, -4.0


class Moody(nn.Module):
    """The first three columns, and its moods."""

    def forward(self, x: Tensor) -> Tensor:
        mood = x[:, 0]
        y = x[:, :3] * 1.0
        if bool((mood == -1.0).any()):
            raise ValueError("a mood of -1")
        if bool((mood == -3.0).any()):
            return y[:, :2]
        while bool((mood == -4.0).any()):
            y = y + 1.0
        return torch.where((mood == -2.0).unsqueeze(1), torch.full_like(y, float("nan")), y)


class Steady(nn.Module):
    """The first three columns."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * 1.0


class Spoiler(nn.Module):
    """The same plus three, and overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        return x[:, :3] / 2.0 + 3.0


class Stacked(nn.Module):
    """Twice the first member less the second; raises, or gives NaN, where the first member's first column is -5, -6."""

    def forward(self, members: Tensor) -> Tensor:
        y = 2.0 * members[:, :3] - members[:, 3:6]
        if bool((members[:, 0] == -5.0).any()):
            raise ValueError("a mood of -5")
        while bool((members[:, 0] == -7.0).any()):
            y = y + 1.0
        return torch.where((members[:, :1] == -6.0), torch.full_like(y, float("nan")), y)


class Scaled(nn.Module):
    """A row of any length, scaled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Shortened(nn.Module):
    """A row of any length, without its last element if the first is negative."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] < 0).any()):
            return x[:, :-1] * 1.0
        return x * 1.0


class Whimsical(nn.Module):
    """A row of any length; two elements of each if the batch begins with a 2."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x[0, 0] == 2.0):
            return x[:, :2] * 1.0
        return x * 1.0


class Broken(nn.Module):
    """Two columns of three."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] * 1.0


MODELS = {
    "moody": Moody(),
    "spoiler": Spoiler(),
    "steady": Steady(),
    "stacked": Stacked(),
    "double": Scaled(2.0),
    "triple": Scaled(3.0),
    "shortened": Shortened(),
    "whimsical": Whimsical(),
    "broken": Broken(),
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, model in MODELS.items():
        torch.jit.script(model).save(str(folder / f"{name}.pt"))
    (folder / "corrupt.pt").write_bytes((folder / "moody.pt").read_bytes()[:-200])
