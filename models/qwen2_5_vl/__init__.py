"""Qwen2.5-VL: the model and its prompts, its vision encoder, and its grounding output."""
