"""HTTP dialects over :mod:`raylens.core.types`: one file per dialect, and their shared parts."""
