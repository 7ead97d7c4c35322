"""What may be chosen for pictures; needs no library, so that configs and rows can check by it."""

COLOR_FIXES = ("adain", "wavelet", "none")
"""What gives an output its input's colours."""
MAX_SCALE = 8
"""Output sides over input sides: the models know a factor of 4, far more would be interpolation."""
