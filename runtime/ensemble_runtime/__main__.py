"""The runtime's entry points: `serve` a configuration; `devices`, `profile` and `fetch` for the planner."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ensemble_runtime import report
from ensemble_runtime.config import RuntimeConfig, Schema
from ensemble_runtime.errors import EnsembleError, ManifestError, ModelEvictedError, ModelNotCachedError
from ensemble_runtime.logs import log_to_stderr
from ensemble_runtime.words import spelled

PROGRESS_SECONDS = 1.0
"""So often, `fetch` tells how far it is."""

Document = TypeVar("Document", bound=Schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see `ensemble_runtime.errors`)."""
    options = _parser().parse_args(arguments)
    log_to_stderr(options.log_level)
    try:
        return int(options.command(options))
    except EnsembleError as error:
        print(f"ensemble-runtime: {error}", file=sys.stderr)
        report.leave(report.reason(error), getattr(options, "termination_message", None))
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ensemble-runtime", description="Serves an ensemble of deep networks.")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a runtime configuration until stopped")
    serve.add_argument("document", metavar="CONFIG.json", type=Path)
    serve.add_argument(
        "--fetched", action="store_true", help="`fetch` has been run for pinned models: one that is missing was evicted"
    )
    serve.set_defaults(command=_serve)

    fetch = commands.add_parser(
        "fetch", help="fetch the models of a request; prints path, sha256 and size of each, and how far the fetch is"
    )
    fetch.add_argument("document", metavar="REQUEST.json", type=Path)
    fetch.add_argument(
        "--cache-mib", type=int, metavar="N", help="evict what was used longest ago where all fetched models take more"
    )
    fetch.add_argument(
        "--missing", action="store_true", help="only what is neither a local file nor in the cache; it is not read"
    )
    fetch.set_defaults(command=_fetch)

    profile = commands.add_parser("profile", help="measure members on devices; prints one JSON record a line")
    profile.add_argument("document", metavar="REQUEST.json", type=Path)
    profile.set_defaults(command=_profile)

    pairs = commands.add_parser("interference", help="measure how pairs of members get along on a device")
    pairs.add_argument("document", metavar="REQUEST.json", type=Path)
    pairs.set_defaults(command=_interference)

    partition = commands.add_parser("partition", help="find how two devices share a model; prints JSON records")
    partition.add_argument("document", metavar="REQUEST.json", type=Path)
    partition.set_defaults(command=_partition)

    for command in (serve, fetch, profile, pairs, partition):
        command.add_argument("--cache", type=Path, default=default_cache(), help="folder for fetched models")
    for command in (serve, profile, partition):
        command.add_argument(
            "--termination-message",
            type=Path,
            metavar="PATH",
            help="also leave the reason of a failure, or a profile's records, in this file for Kubernetes",
        )

    devices = commands.add_parser("devices", help="print this machine's devices as JSON")
    devices.add_argument(
        "--cores-per-device", type=int, default=1, metavar="N", help="cores of a CPU device (default 1)"
    )
    devices.set_defaults(command=_devices)
    return parser


def default_cache() -> Path:
    """Where models are kept: $XDG_CACHE_HOME/ensembles/models, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ensembles" / "models"


def _serve(options: argparse.Namespace) -> int:
    # Before numpy is imported: its linear algebra would start threads, which a fork does not survive.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from ensemble_runtime.devices import slots
    from ensemble_runtime.gateway.process import serve_until_stopped
    from ensemble_runtime.pipeline import supervisor

    config = _read(options.document, RuntimeConfig)
    config = config.model_copy(update={"devices": slots.bound(config.devices)})
    try:
        return supervisor.run(config, options.cache, serve_until_stopped)
    except ModelNotCachedError as error:
        if not options.fetched:
            raise
        raise ModelEvictedError(f"evicted from the cache after it was fetched: {error}") from error


def _fetch(options: argparse.Namespace) -> int:
    from ensemble_runtime.members.eviction import trim
    from ensemble_runtime.members.storage import at_hand, fetch
    from ensemble_runtime.profiler import FetchRequest

    fetched = []  # all of them at once: none makes room for another
    for member in _read(options.document, FetchRequest).members:
        if options.missing and at_hand(member.model, options.cache):
            continue
        model = fetch(member.model, options.cache, _progress_of(member.name))
        fetched.append(model)
        _emit({"member": member.name, "path": str(model.path), "sha256": model.sha256, "size": model.size})
    if options.cache_mib is not None:
        trim(options.cache, options.cache_mib * 2**20)
    return 0


def _progress_of(member: str) -> Callable[[int, int | None], None]:
    """Prints now and then how much of a member's model is there; nothing of one that is there at once."""
    told: float | None = None

    def tell(count: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if told is None:
            told = now
        elif now - told >= PROGRESS_SECONDS:
            told = now
            _emit({"member": member, "bytes": count, "ofBytes": total})

    return tell


def _profile(options: argparse.Namespace) -> int:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported, as in `_serve`
    from ensemble_runtime.devices import slots
    from ensemble_runtime.profiler import ProfileRequest, profile

    request = _read(options.document, ProfileRequest)
    request = request.model_copy(update={"devices": slots.bound(request.devices)})
    measured: dict[tuple[object, ...], dict[str, Any]] = {}
    for record in profile(request, options.cache):
        _emit(record)
        if "seconds" in record:
            # Written each time: a container that runs out of memory is killed as a whole, and leaves what it has.
            measured[tuple(record[key] for key in ("digest", "deviceType", "precision", "batchSize"))] = record
            report.leave(report.pack([*measured.values()]), options.termination_message)
    return 0


def _interference(options: argparse.Namespace) -> int:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported, as in `_serve`
    from ensemble_runtime.interference import PairsRequest, interference

    for record in interference(_read(options.document, PairsRequest), options.cache):
        _emit(record)
    return 0


def _partition(options: argparse.Namespace) -> int:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported, as in `_serve`
    from ensemble_runtime.devices import slots
    from ensemble_runtime.partition.answer import POINT, PartitionRequest, partition

    request = _read(options.document, PartitionRequest)
    if request.simulated is None:
        first, second = slots.bound(request.devices)
        request = request.model_copy(update={"devices": (first, second)})
    measured: list[dict[str, Any]] = []
    for record in partition(request, options.cache):
        _emit(record)
        measured.append({name: record[name] for name in POINT})
        report.leave(report.pack(measured), options.termination_message)
    return 0


def _devices(options: argparse.Namespace) -> int:
    from ensemble_runtime.devices.local import discover

    found = discover(cores_per_device=options.cores_per_device)
    _emit([device.model_dump(mode="json", by_alias=True, exclude_defaults=True) for device in found])
    return 0


def _read(path: Path, document: type[Document]) -> Document:
    """Read and validate a JSON document; one line a fault, with its path."""
    try:
        return document.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        faults = "\n".join(f"  {spelled(fault['loc']) or 'document'}: {fault['msg']}" for fault in error.errors())
        raise ManifestError(f"{path}: {error.error_count()} fault(s)\n{faults}") from error


def _emit(record: object) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
