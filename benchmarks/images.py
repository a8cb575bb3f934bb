"""Sizes of the images: built from the Dockerfiles onto the base image of the cluster tests, which debootstrap makes.

Needs root, buildah and debootstrap. The large image holds torch and CUDA: give it time and 30 GiB of disk.
"""

import json
import subprocess
import sys
from pathlib import Path

from common import Effort, Report, main, progress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from beds.images import BASE, FULL, OPERATOR, RUNTIME, Image, ImageError, provide

IMAGES = {
    "operator": Image(OPERATOR, "operator/Dockerfile"),
    "runtime, `onnx`": Image(RUNTIME, "runtime/Dockerfile", {"VARIANT": "onnx"}),
    "runtime, `full`": FULL,
}


def benchmark(_: Effort) -> Report:
    try:
        _, *archives = provide(tuple(IMAGES.values()), progress)
    except ImageError as error:
        raise RuntimeError(str(error)) from error
    built = zip(IMAGES.items(), archives, strict=True)
    rows = [(label, on_disk(image.name), compressed(archive)) for (label, image), archive in built]
    method = (
        "On a node's disk, and as one gzip file, which is about what is pulled. Debian 12 by debootstrap is the base, "
        f"{on_disk(BASE)}: Debian's slim image leaves out its package lists, locales and documentation, some 100 MB."
    )
    return Report(method, ("image", "on disk", "compressed"), rows)


def on_disk(image: str) -> str:
    listed = subprocess.run(["buildah", "images", "--json", image], capture_output=True, text=True, check=True)
    return str(json.loads(listed.stdout)[0]["size"])


def compressed(archive: Path) -> str:
    progress(f"compressing {archive.name} ...")
    with subprocess.Popen(["gzip", "-1", "--stdout", archive], stdout=subprocess.PIPE) as packing:
        assert packing.stdout
        size = sum(len(block) for block in iter(lambda: packing.stdout.read(2**20), b""))
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main(benchmark)
