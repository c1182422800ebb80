"""What the CUDA forms of all ops share: lazy compilation, element types, warp operations, PTX reports.

Importing anything in this package imports neither Numba nor CUDA.
"""
