"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A busy machine is no failure: how long an example takes is for the benchmarks. What CI tries, it tries again.
settings.register_profile("ensembles", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ensembles")
