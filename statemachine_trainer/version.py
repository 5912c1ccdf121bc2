"""The version of this package, by itself so that any part of it can say it."""

__version__ = "0.1.0"
