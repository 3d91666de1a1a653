"""Runtimes that answer by way of another server or library: the rest of the graph stays the same."""
