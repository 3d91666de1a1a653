"""Measurements. Each prints one table, with a baseline or a limit measured in the same run."""
