"""How the pocket checkpoints are made and trained. Not part of the wheel."""
