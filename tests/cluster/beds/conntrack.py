"""Where kube-proxy has led a connection, as the kernel remembers it."""

from __future__ import annotations

import re
from pathlib import Path

CONNECTIONS = Path("/proc/net/nf_conntrack")


def destination(port: int) -> str | None:
    """The address of the pod that a connection from this local port was led to; None where it was led nowhere.

    Args:
        port: Of this machine's end; no two connections may have it at the same time.
    """
    if not CONNECTIONS.exists():  # a user's cluster is elsewhere
        return None
    for line in CONNECTIONS.read_text().splitlines():
        # The way there comes first, the way back second: from where a Service's address was led to.
        sources, ports = re.findall(r"src=(\S+)", line), re.findall(r"sport=(\d+)", line)
        if len(sources) == 2 and ports[0] == str(port):
            return str(sources[1])
    return None
