"""Bytes to pixels: pure functions of arrays, one operation a file. No ray, no torch."""
