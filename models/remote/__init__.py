"""Runtimes that answer through another server or library."""
