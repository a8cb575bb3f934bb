"""The data plane: batches, predicts and combines the members of one ensemble over shared memory."""

__version__ = "0.1.0"
