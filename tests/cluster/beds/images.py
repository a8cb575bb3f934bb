"""Images for the machines, built without a container engine's daemon and without a registry.

The base image comes from debootstrap, the project's from its own Dockerfiles; their layers stay for the next time.
Archives are cached by what is in them, so that nodes load the same file again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
BASE = "localhost/debian:bookworm-slim"
DEBIAN = "docker.io/library/debian:bookworm-slim"
"""What the base image stands for, where a manifest names it."""
PAUSE = "localhost/pause:1"
OPERATOR = "localhost/ensemble-operator:test"
RUNTIME = "localhost/ensemble-runtime:test-onnx"
KEPT_SECONDS = 3600.0
LABEL = "ensembles.dev/bed=image"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""


class ImageError(Exception):
    """An image that could not be built; the message ends with what the tool said."""


@dataclass(frozen=True)
class Image:
    """One image of the project.

    Attributes:
        name: Its full name, which is how pods ask for it.
        dockerfile: From the root of the repository.
        arguments: Build arguments beside the base image.
    """

    name: str
    dockerfile: str
    arguments: Mapping[str, str] = field(default_factory=dict)


FULL = Image("localhost/ensemble-runtime:test-full", "runtime/Dockerfile", {"VARIANT": "full"})
"""With torch and CUDA: 6.4 GB, some ten minutes; for the slow targets."""
PROJECT = (Image(OPERATOR, "operator/Dockerfile"), Image(RUNTIME, "runtime/Dockerfile", {"VARIANT": "onnx"}))


def provide(images: tuple[Image, ...], say: Callable[[str], None]) -> list[Path]:
    """Build what has changed; the archives that nodes load.

    Raises:
        ImageError: A tool failed.
    """
    with _building():
        if not _identity(PAUSE):
            say("building the pause image ...")
            _pause()
        _built(images, say)
        return [_archive(name, name) for name in (PAUSE, *(image.name for image in images))]


def debian() -> Path:
    """The base image under the name that users' manifests have for it, for nodes to load; `provide` has built it."""
    with _building():
        return _archive(BASE, DEBIAN)


def build(image: Image, say: Callable[[str], None]) -> None:
    """Build an image if it has changed, for this machine alone.

    Raises:
        ImageError: A tool failed.
    """
    with _building():
        _built((image,), say)


@contextmanager
def _building() -> Iterator[None]:
    """One after the other: whoever builds other sources at the same time gives them the same names."""
    with (_cache() / "building.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _built(images: tuple[Image, ...], say: Callable[[str], None]) -> None:
    if not _identity(BASE):
        say("building the base image (once, half a minute) ...")
        _base()
    for image in images:
        say(f"building {image.name} from {image.dockerfile} ...")
        _build(image)
    _prune()


def _pause() -> None:
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "pause"
        _run("gcc", "-xc", "-Os", "-static", "-o", str(program), "-", given=_PAUSE_SOURCE)
        container = _run("buildah", "from", "scratch").strip()
        _run("buildah", "copy", container, str(program), "/pause")
        _run("buildah", "config", "--entrypoint", '["/pause"]', "--user", "65535:65535", container)
        _run("buildah", "commit", "--rm", container, PAUSE)


def _base() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        _run("debootstrap", "--variant=minbase", "bookworm", str(root))
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        # Mirrors of this machine may be signed by an authority of its own. In a place of its own, too: the package
        # ca-certificates, which a Dockerfile installs, writes the usual one anew.
        shutil.copy(_CERTIFICATES, root / "etc/machine.crt")
        (root / "etc/pip.conf").write_text("[global]\ncert = /etc/machine.crt\n")
        container = _run("buildah", "from", "scratch").strip()
        _run("buildah", "add", container, str(root), "/")
        _run("buildah", "config", "--cmd", "bash", container)
        _run("buildah", "commit", "--rm", container, BASE)


def _build(image: Image) -> None:
    arguments = {"BASE": BASE, **image.arguments}
    options = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    file = REPOSITORY / image.dockerfile
    command = ["buildah", "bud", "--isolation", "chroot", "--pull-never", "--layers", *options]
    _run(*command, "--label", LABEL, "--tag", image.name, "--file", str(file), str(REPOSITORY))


def _prune() -> None:
    """Remove what earlier builds have left behind: each change of the code replaces an image of half a gigabyte."""
    filters = ("--filter", "dangling=true", "--filter", f"label={LABEL}")
    # What fails stays for the next time: an image that is in use, a list that somebody's build changes meanwhile.
    listed = subprocess.run(["buildah", "images", "--quiet", "--no-trunc", *filters], capture_output=True, text=True)
    for left in listed.stdout.split():
        subprocess.run(["buildah", "rmi", left], capture_output=True)


def _archive(image: str, name: str) -> Path:
    """A file with an image, which nodes that load it know by a name."""
    stem = name.replace("/", "_").replace(":", "_")
    archive = _cache() / f"{stem}-{_identity(image)[:16]}.tar"
    if not archive.exists():
        for old in _cache().glob(f"{stem}-*.tar"):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:  # a cluster beside this one may still load it
                old.unlink()
        half_done = archive.with_suffix(".part")
        half_done.unlink(missing_ok=True)  # of somebody who was killed over it
        _run("buildah", "push", "--quiet", image, f"docker-archive:{half_done}:{name}")
        half_done.rename(archive)
    return archive


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ensembles" / "images"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _identity(name: str) -> str:
    command = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", name]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _run(*command: str, given: str | None = None) -> str:
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    if result.returncode != 0:
        raise ImageError(f"{' '.join(command[:3])} failed:\n{(result.stdout + result.stderr)[-3000:]}")
    return result.stdout
