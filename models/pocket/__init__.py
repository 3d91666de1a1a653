"""Tiny checkpoints of the real architectures, and the drawn scenes that they are trained on."""
