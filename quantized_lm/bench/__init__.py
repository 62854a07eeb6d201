"""The benchmark: what this machine can do, how close our kernels come, and what other systems take.

Knows nothing of HTTP but the address of a server it starts for one of its measurements.
"""
