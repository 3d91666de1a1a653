"""The folder ``suites`` is run in environments of its own, which have the clients."""

collect_ignore = ["suites"]
