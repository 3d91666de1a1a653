"""What tests and benchmarks share: a server, checkpoints, pictures, references. Not part of the
wheel."""
