"""A whole table of models from one task file: stages that are cached by what decides them."""
