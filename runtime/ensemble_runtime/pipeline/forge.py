"""The forge: a process that has imported the model libraries once and forks prediction processes from itself.

They share its interpreter and libraries page by page, and start in milliseconds. Only for devices without CUDA, which
does not survive a fork; the forge itself never runs a model.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import socket
from collections.abc import Callable, Iterable

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.members.loading import libraries

READY = b"ready"
"""What the forge says once it can fork."""


def modules_for(config: RuntimeConfig, members: Iterable[str]) -> tuple[str, ...]:
    """The modules that these members' models need."""
    named = set(members)
    return libraries(member.model.format for member in config.members if member.name in named)


def forge_until_killed(channel: socket.socket, modules: tuple[str, ...], become: Callable[[int], None]) -> int:
    """Import, then fork a prediction process for each number that comes down the channel.

    Args:
        channel: A connected SOCK_SEQPACKET socket. Process numbers come in as decimal text; "number pid" goes back.
        modules: What to import beforehand. What cannot be imported is left to the member that needs it, to report.
        become: Runs the prediction process of a number, in that process; does not return.
    """
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector would otherwise write into pages that all children share
    channel.send(READY)
    while message := channel.recv(64):
        _fork_twice(channel, int(message), become)
    return 0


def _fork_twice(channel: socket.socket, process: int, become: Callable[[int], None]) -> None:
    """Fork so that the supervisor, which adopts orphans, becomes the parent of the new process."""
    between = os.fork()
    if between == 0:
        try:
            pid = os.fork()
            if pid == 0:
                channel.close()
                become(process)
            channel.send(b"%d %d" % (process, pid))
        finally:
            os._exit(0)
    os.waitpid(between, 0)
