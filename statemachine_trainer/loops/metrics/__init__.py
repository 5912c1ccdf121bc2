"""What is logged in a run: the tables that `log` fills, and what they hold."""
