"""Sending a verb to a Ray cluster as a job, and looking after it: ``megu submit`` and ``megu jobs``."""
