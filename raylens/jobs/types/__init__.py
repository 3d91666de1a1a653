"""The types of jobs that are built in. A plugin adds others through the entry point group
``raylens.job_types``."""
