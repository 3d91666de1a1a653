"""The nouns of raylens, and what every layer reads: requests, recipes, errors, ports,
configuration."""
