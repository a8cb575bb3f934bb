"""The five members as torch modules: (rows, 64) grey values from 0 to 16 in, (rows, 10) logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 8
CLASSES = 10
BRIGHTEST = 16.0


class Perceptron(nn.Module):
    """One hidden layer over all pixels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(SIDE * SIDE, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(image / BRIGHTEST)))


class Convolutional(nn.Module):
    """Two convolutions with pooling: sees strokes wherever they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strokes = nn.Conv2d(1, channels, 3, padding=1)
        self.parts = nn.Conv2d(channels, 2 * channels, 3)
        self.head = nn.Linear(2 * channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        picture = (image / BRIGHTEST).reshape(-1, 1, SIDE, SIDE)
        strokes = nn.functional.max_pool2d(torch.relu(self.strokes(picture)), 2)
        return self.head(torch.relu(self.parts(strokes)).amax(dim=(2, 3)))


class RowAttention(nn.Module):
    """Every row of the image looks at every other one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, width)
        self.place = nn.Parameter(0.1 * torch.randn(SIDE, width))
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.head = nn.Linear(SIDE * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        rows = self.embed((image / BRIGHTEST).reshape(-1, SIDE, SIDE)) + self.place
        scores = self.queries(rows) @ self.keys(rows).transpose(1, 2) / rows.shape[-1] ** 0.5
        seen = torch.relu(rows + torch.softmax(scores, dim=-1) @ self.values(rows))
        return self.head(seen.flatten(1))


class RowReader(nn.Module):
    """A GRU that reads the image row by row, from the top."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(SIDE, hidden, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        _, last = self.gru((image / BRIGHTEST).reshape(-1, SIDE, SIDE))
        return self.head(last[0])


class Probabilities(nn.Module):
    """A net with a softmax behind it: what is exported."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.net(image), dim=-1)
