"""Other systems that score n-best lists, one file each, run by an environment of their own.

These files know nothing of quantized_lm: each is started as `python -m peers.NAME`, is told where
weights and lists are, and answers requests as `protocol` says.
"""
