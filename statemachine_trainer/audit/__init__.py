"""Finds what checkpoints cannot hold and what a script has changed, and tells of it."""
