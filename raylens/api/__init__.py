"""HTTP to and from :mod:`raylens.types`: one file a dialect, and what they share."""
