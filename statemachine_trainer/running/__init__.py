"""The parts that a trainer is made of, and that do what its methods promise."""
