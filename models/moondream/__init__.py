"""Moondream 2 (https://huggingface.co/vikhyatk/moondream2) on the engine.

The architecture follows ``moondream/torch`` of the public repository vikhyat/moondream, called
"upstream" in this package. It is rewritten for batches and runs no code from the hub.
"""
