"""The built-in job types. Plugins add others by the entry point group ``raylens.job_types``."""
