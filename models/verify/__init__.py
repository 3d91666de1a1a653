"""Verification of real checkpoints: fixed questions about drawn scenes, and a reference's answers.

The command is ``raylens verify``. A family compares its checkpoints with a reference in its own
``verify`` module.
"""
