"""The HTTP half of secondpass: n-best lists in, the same lists in a new order out."""
