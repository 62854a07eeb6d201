"""Stages that make a model, one file each: corpus, train, quantize, export, evaluate."""
