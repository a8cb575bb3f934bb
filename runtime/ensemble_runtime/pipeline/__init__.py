"""Batching, prediction and combination: three kinds of process over one shared-memory arena."""
