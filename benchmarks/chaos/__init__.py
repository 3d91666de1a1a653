"""What happens to requests and jobs while parts of a cluster are killed: ``python -m
benchmarks.chaos``."""
