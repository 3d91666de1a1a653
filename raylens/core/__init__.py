"""The nouns that every layer shares: requests, recipes, errors, ports and the configuration."""
