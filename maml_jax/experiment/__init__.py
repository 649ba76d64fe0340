"""Experiments: from a config to objects, and runs on disk."""
