"""Word lattices: what they are, the files and tensors they come in, and searches over them."""
