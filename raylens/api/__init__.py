"""HTTP to and from :mod:`raylens.core.types`: one file a dialect, and what they share."""
