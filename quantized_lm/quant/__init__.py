"""Weights as packed codes: formats, packing, the tensor type and the quantizers."""
