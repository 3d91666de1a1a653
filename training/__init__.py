"""Training of the pocket checkpoints. Not part of the wheel."""
