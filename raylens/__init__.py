"""raylens: vision-language models as one Ray Serve deployment graph."""

__version__ = "0.1.0"
