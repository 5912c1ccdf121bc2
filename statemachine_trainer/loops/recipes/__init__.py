"""Loops for particular ways of training, built on those of `loops`."""
