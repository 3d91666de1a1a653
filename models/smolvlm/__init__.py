"""SmolVLM and SmolVLM2: prompts, tiles and the vision encoder."""
