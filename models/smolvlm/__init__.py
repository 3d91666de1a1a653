"""SmolVLM and SmolVLM2: the model with its prompts and tiles, and the vision encoder."""
