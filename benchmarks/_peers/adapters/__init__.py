"""How each peer trains: a module each, with `steps` and `training`, as its documentation says.

Each module imports its library at the top: what that takes is the import time of the table.
"""
