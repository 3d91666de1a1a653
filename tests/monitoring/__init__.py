"""The files of ``monitoring/``: their syntax, their metrics, and a server that they watch."""
