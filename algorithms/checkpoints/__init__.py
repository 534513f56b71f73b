"""Checkpoints: the file, the tensors in it, and saving and restoring an algorithm."""
