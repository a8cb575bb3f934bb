"""What pods say of themselves at /metrics."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from typing import Any


def samples(pod: Mapping[str, Any], metric: str) -> list[tuple[str, float]]:
    """Labels and values of a metric of a pod of an ensemble.

    Raises:
        OSError: It does not answer.
        KeyError: It has no address.
    """
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [(labels, float(value)) for labels, value in re.findall(rf"^{metric}{{(.*)}} (\S+)$", text, re.MULTILINE)]
