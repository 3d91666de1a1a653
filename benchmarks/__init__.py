"""Benchmarks. Each prints a table with a baseline or a limit that was measured in the same run."""
