"""The data plane: batches, predicts and combines the members of one ensemble over shared memory."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime's Linux wheels report models and sessions to their maker unless told otherwise when they are
# loaded: here, since whatever loads them imports this package first. Whoever wants to be reported sets the variable.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
