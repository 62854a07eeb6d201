"""Make and run mixed-precision, bit-packed language models that rescore speech recognition."""
