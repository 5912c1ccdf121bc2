"""The parts of a trainer, which do the work of its methods."""
