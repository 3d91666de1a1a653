"""Vision-language model families, one file or package each, and the parts that they share."""
