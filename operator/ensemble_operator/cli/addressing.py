"""Which server a command speaks to."""

from __future__ import annotations

from pathlib import Path

from ensemble_operator.cli.errors import DataError
from ensemble_operator.cli.preparing import read_manifest
from ensemble_operator.cli.server import Server, find


def server_at(address: str, port: int) -> Server:
    """The server at a URL; or, given a manifest, the one on this machine that serves it.

    Raises:
        EnsembleError: The manifest is wrong, or no such ensemble is served there.
    """
    if "://" in address:
        return find(address)
    if not Path(address).exists():
        raise DataError(f"got '{address}', expected http://HOST:PORT or the file of a manifest; there is no such file")
    ensemble = read_manifest(Path(address)).ensemble
    return find(f"http://127.0.0.1:{port}", ensemble.metadata.name)
