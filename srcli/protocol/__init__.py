"""What the rest of srcli may know of a method, and nothing more: its declaration, its restorer, what trains it.

Nothing here needs torch when it is imported, so that `--help` can show what families declare.
"""
