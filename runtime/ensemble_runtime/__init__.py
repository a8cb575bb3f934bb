"""The data plane: batches, predicts and combines the members of one ensemble over shared memory."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime's Linux wheels report models and sessions to their maker, unless they are told otherwise
# before they are loaded: whatever loads them imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
