"""What is made sure of before any process is started: the port, the tokens, the model files."""

from __future__ import annotations

import socket
from pathlib import Path

from ensemble_runtime.config import DeviceKind, Rule, RuntimeConfig
from ensemble_runtime.errors import PortTakenError
from ensemble_runtime.members.storage import FetchedModel, fetch
from ensemble_runtime.pipeline.remote_wire import authorization
from ensemble_runtime.pipeline.stacking import STACKING

_BACKLOG = 1024


def listen(config: RuntimeConfig) -> socket.socket:
    """A socket that listens where the configuration says.

    Raises:
        PortTakenError: nobody can listen there.
    """
    address = (config.listen.host, config.listen.port)
    family = socket.AF_INET6 if ":" in config.listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise PortTakenError(f"cannot listen on {address[0]}:{address[1]}: {reason}") from error
    listener.setblocking(False)
    return listener


def check_tokens(config: RuntimeConfig) -> None:
    """Find out now that the shards' token cannot be read, and not when it is needed."""
    for file in [remote.token_file for remote in config.remotes] + ([config.shard.token_file] if config.shard else []):
        authorization(file)


def fetch_models(config: RuntimeConfig, cache: Path) -> dict[str, FetchedModel]:
    """Fetch and check every model that a real device will load."""
    real = {device.name for device in config.devices if device.kind is not DeviceKind.SIMULATED}
    needed = {cell.member for cell in config.cells if cell.device in real}
    models = {m.name: fetch(m.model, cache) for m in config.members if m.name in needed}
    if config.combination.rule is Rule.STACKING and config.combination.model is not None:
        models[STACKING] = fetch(config.combination.model, cache)
    return models
