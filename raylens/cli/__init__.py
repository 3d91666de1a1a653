"""The ``raylens`` command."""
