"""Batched generation: a scheduler that decides, a model that computes, one thread that runs them."""
