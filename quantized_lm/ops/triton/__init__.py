"""Kernels of the GPU, written in Triton; imported only where Triton is, by `ops/gpu.py`.

Each file holds one kernel and what it computes; `launch.py` calls them with torch's tensors. The
reference backend is their meaning: integers are summed exactly, and every float32 step before a
rounding to int8 is the same whatever tile, bucket or residency computes it.
"""
