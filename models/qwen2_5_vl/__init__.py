"""Qwen2.5-VL: the model and its prompts, its vision tower, and what it writes of places."""
