"""Evaluation of checkpoints on many tasks."""
