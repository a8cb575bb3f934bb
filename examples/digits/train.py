"""Trains the members of the digits ensemble, writes them in their formats, and their digests into the manifest.

scikit-learn's 1,797 digits are split once into 800 to train on, 200 to validate on and 797 held out. Every member
learns from its own bootstrap sample (Breiman 1996), so that the members err in different places. What the validation
images say decides the members' votes; the held-out images are looked at by nobody before the demo.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import graphs
import numpy as np
import onnx
import torch
import yaml
from nets import SIDE, Convolutional, Perceptron, Probabilities, RowAttention, RowReader
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from torch import Tensor, nn

HERE = Path(__file__).parent
TRAINING, VALIDATION = 800, 200
EPOCHS = 40
ROWS_PER_STEP = 32


@dataclass(frozen=True)
class Images:
    """Grey values (rows, 64) as float32 from 0 to 16, and the digit that each row shows."""

    pixels: NDArray[np.float32]
    digits: NDArray[np.int64]

    def pick(self, rows: NDArray[np.int64]) -> Images:
        return Images(self.pixels[rows], self.digits[rows])


@dataclass(frozen=True)
class Recipe:
    """How one member of the manifest is made: its net, its learning rate, and who writes its file."""

    member: str
    net: Callable[[], nn.Module]
    learning_rate: float
    write: Callable[[nn.Module, Path], None]


def split(seed: int) -> tuple[Images, Images, Images]:
    """Images to train on, to validate on, and held out."""
    pixels, digits = load_digits(return_X_y=True)
    everything = Images(pixels.astype(np.float32), digits.astype(np.int64))
    order = np.random.default_rng(seed).permutation(len(digits))
    parts = np.split(order, [TRAINING, TRAINING + VALIDATION])
    return everything.pick(parts[0]), everything.pick(parts[1]), everything.pick(parts[2])


def train(net: nn.Module, images: Images, learning_rate: float, seed: int, after_epoch: Callable[[], None]) -> None:
    """Fit a net by Adam with a falling learning rate; the same seed gives the same net."""
    generator = torch.Generator().manual_seed(seed)
    pixels, digits = torch.from_numpy(images.pixels), torch.from_numpy(images.digits)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(digits), generator=generator).split(ROWS_PER_STEP):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(pixels[rows]), digits[rows]).backward()
            optimizer.step()
        schedule.step()
        after_epoch()
    net.eval()


def write_torch_export(net: nn.Module, path: Path) -> None:
    example = torch.zeros(2, SIDE * SIDE)
    rows = torch.export.Dim("rows")
    torch.export.save(torch.export.export(Probabilities(net), (example,), dynamic_shapes=({0: rows},)), path)


def write_torch_script(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch retires the format, which many models are still in
        torch.jit.trace(Probabilities(net), torch.zeros(2, SIDE * SIDE)).save(path)


def write_onnx(graph: Callable[..., onnx.ModelProto]) -> Callable[[nn.Module, Path], None]:
    return lambda net, path: onnx.save(graph(net), path)


RECIPES = (
    Recipe("mlp", lambda: Perceptron(hidden=48), 3e-3, write_torch_export),
    Recipe("cnn", lambda: Convolutional(channels=12), 5e-3, write_torch_export),
    Recipe("attention", lambda: RowAttention(width=24), 3e-3, write_torch_script),
    Recipe("wide-mlp", lambda: Perceptron(hidden=96), 3e-3, write_onnx(graphs.perceptron)),
    Recipe("gru", lambda: RowReader(hidden=48), 5e-3, write_onnx(graphs.row_reader)),
)


def hits(net: nn.Module, images: Images) -> int:
    """How many of the images a net takes for the digit they show."""
    with torch.inference_mode():
        guesses: Tensor = net(torch.from_numpy(images.pixels)).argmax(dim=-1)
    return int((guesses.numpy() == images.digits).sum())


def vote(right: int, of: int) -> float:
    """A member's weight: its log odds of being right, the best for independent voters (Nitzan & Paroush 1982)."""
    return round(math.log((right + 1) / (of - right + 1)), 3)


def make(recipes: Sequence[Recipe], folder: Path, seed: int, console: Console) -> None:
    """Train every member and write models, manifest and held-out images into a folder."""
    training, validation, held_out = split(seed)
    manifest = yaml.safe_load((HERE / "ensemble.yaml").read_text())
    members = {member["name"]: member for member in manifest["spec"]["members"]}
    sampler = np.random.default_rng(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("training", total=EPOCHS * len(recipes))
        for number, recipe in enumerate(recipes):
            progress.update(bar, description=f"training {recipe.member}")
            start = time.perf_counter()
            torch.manual_seed(seed * len(recipes) + number)
            net = recipe.net()
            sample = training.pick(sampler.choice(TRAINING, TRAINING))
            train(net, sample, recipe.learning_rate, seed, lambda: progress.advance(bar))
            member = members[recipe.member]
            path = folder / member["model"]["uri"].rpartition("/")[2]
            recipe.write(net, path)
            right = hits(net, validation)
            member["weight"] = vote(right, VALIDATION)
            member["model"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            console.print(
                f"{recipe.member:<10}{member['model']['format']:<12} {right / VALIDATION:6.1%} of the validation images"
                f"  {time.perf_counter() - start:4.1f} s",
                highlight=False,
            )
    np.savez(folder / "held-out.npz", image=held_out.pixels, digit=held_out.digits)
    # Last, so that a manifest means that everything it names is there.
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="where all of it goes (default: build/, here)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the samples and the nets (default 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # nets this small are slower on two
    arguments.out.mkdir(parents=True, exist_ok=True)
    make(RECIPES, arguments.out, arguments.seed, Console())


if __name__ == "__main__":
    main()
