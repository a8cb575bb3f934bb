"""The quick start of docs/install.md, typed as it stands there: models onto a volume, then the example's manifest."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import tritonclient.http
import yaml
from numpy.typing import NDArray

from beds import images
from beds.images import REPOSITORY
from beds.machines import Machines

DIGITS = REPOSITORY / "examples" / "digits"
KUBERNETES = REPOSITORY / "examples" / "kubernetes"
ENSEMBLE, OUTPUT = "digits", "probabilities"
SECONDS = 240.0
"""The longest that one command may take."""
IMAGES_A_REQUEST = 256

Answers = Mapping[str, NDArray[np.float32]]
"""Probabilities (images, 10), of the ensemble and of each of its members by name."""


@dataclass(frozen=True)
class HeldOut:
    """The images that no member has learned from.

    Attributes:
        pixels: Grey values (images, 64) from 0 to 16.
        digits: What each shows.
    """

    pixels: NDArray[np.float32]
    digits: NDArray[np.int64]

    def accuracy(self, probabilities: NDArray[np.float32]) -> float:
        """The share of images that are taken for the digit they show."""
        return float((probabilities.argmax(axis=1) == self.digits).mean())


class QuickStart:
    """One namespace in which the quick start is followed."""

    def __init__(self, machines: Machines, namespace: str, folder: Path = REPOSITORY) -> None:
        """Nothing is typed yet.

        Args:
            machines: The cluster.
            namespace: Where the user's kubeconfig leads.
            folder: Where the user stands: the repository, or what looks like it.
        """
        self.machines = machines
        self.namespace = namespace
        self.folder = folder
        self._models = folder / "examples" / "digits" / "build"
        self._environment = machines.environment(namespace)

    def train(self) -> None:
        """What `make demo` begins with, unless that has been run."""
        if not (self._models / "ensemble.yaml").exists():
            subprocess.run([sys.executable, DIGITS / "train.py", "--out", self._models], check=True)

    def provide(self) -> None:
        """What a user's cluster has: an image that nodes can pull, and a volume for the claim."""
        for node in self.machines.nodes.values():
            node.load(images.debian())
        claim, _ = yaml.safe_load_all((KUBERNETES / "pvc.yaml").read_text())
        self._volume = self.machines.provision(claim, self.namespace)

    def follow(self, show: Callable[[str, str], None]) -> None:
        """Type what the page says, and show each line with what comes of it.

        Raises:
            subprocess.CalledProcessError: A command fails; `stderr` says why.
        """
        for line in commands():
            done = subprocess.run(
                shlex.split(line, comments=True),
                cwd=self.folder,
                env=self._environment,
                capture_output=True,
                text=True,
                check=True,
                timeout=SECONDS,
            )
            show(line, done.stdout)

    def clear(self) -> None:
        """All of it goes."""
        manifests = [part for name in ("digits-cpu", "pvc") for part in ("-f", str(KUBERNETES / f"{name}.yaml"))]
        self.machines.plane.kubectl("delete", "--ignore-not-found", *manifests, namespace=self.namespace)
        self.machines.plane.admin.delete(f"/api/v1/persistentvolumes/{self._volume}")

    def held_out(self) -> HeldOut:
        """What the ensemble can be asked about."""
        found = np.load(self._models / "held-out.npz")
        return HeldOut(found["image"], found["digit"])

    def ask(self, held_out: HeldOut) -> Answers:
        """Through the Service, with Triton's own client."""
        url = self.machines.service_url(self.namespace, ENSEMBLE).removeprefix("http://")
        starts = range(IMAGES_A_REQUEST, len(held_out.digits), IMAGES_A_REQUEST)
        with tritonclient.http.InferenceServerClient(url) as client:
            parts = [_ask(client, pixels) for pixels in np.split(held_out.pixels, starts)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def compute(self, held_out: HeldOut) -> Answers:
        """The same by ONNX Runtime and numpy alone, from the files that were trained."""
        spec = yaml.safe_load((KUBERNETES / "digits-cpu.yaml").read_text())["spec"]
        assert spec["combination"] == {"rule": "SoftVote"}
        answers = {}
        for member in spec["members"]:
            session = onnxruntime.InferenceSession(self._models / Path(member["model"]["uri"]).name)
            (answers[member["name"]],) = session.run(None, {session.get_inputs()[0].name: held_out.pixels})
        return {ENSEMBLE: np.mean(list(answers.values()), axis=0), **answers}


def _ask(client: tritonclient.http.InferenceServerClient, pixels: NDArray[np.float32]) -> Answers:
    tensor = tritonclient.http.InferInput("image", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels)
    result = client.infer(ENSEMBLE, [tensor], parameters={"return_members": True})
    names = [output["name"] for output in result.get_response()["outputs"]]
    return {name.removeprefix(f"{OUTPUT}@").replace(OUTPUT, ENSEMBLE): result.as_numpy(name) for name in names}


def commands() -> list[str]:
    """What the page tells a user to type, once the members are trained, until the ensemble is ready and looked at."""
    page = (REPOSITORY / "docs" / "install.md").read_text()
    (block,) = (b for b in re.findall(r"```console\n(.*?)```", page, re.DOTALL) if "digits-cpu.yaml" in b)
    return [line for line in block.splitlines() if line.startswith("kubectl ")]
