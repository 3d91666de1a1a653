"""The built-in job types.

Plugins add others through the entry point group ``raylens.job_types``.
"""
