"""Moondream 2 (https://huggingface.co/vikhyatk/moondream2) on the engine: its architecture as the
public repository vikhyat/moondream has it in ``moondream/torch``, written anew for batches, and
with no code from the hub."""
