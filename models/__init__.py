"""Vision-language model families, one package each, and the parts that they share."""
