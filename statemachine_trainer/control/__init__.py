"""Acting on a run from outside: from its page, or from another process."""
