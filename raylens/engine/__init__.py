"""Batched generation: a scheduler decides, a model computes, and one thread runs both."""
