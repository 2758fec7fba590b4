"""Checkpoints of a run, verified by SHA-256."""
