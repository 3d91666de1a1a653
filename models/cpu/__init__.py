"""The models' arithmetic on CPUs, in C: linear layers, attention, and whole decode steps.

docs/cpu.md describes it.
"""
