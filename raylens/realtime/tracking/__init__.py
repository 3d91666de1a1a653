"""Boxes and points that follow the picture between the results of a model."""
