"""Large folders in parts: which part a file belongs to, what is done with which settings, and what of all parts is missing."""
