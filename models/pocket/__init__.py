"""Tiny checkpoints of the real architectures, the drawn scenes that they know, and how they were
trained."""
