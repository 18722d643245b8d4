"""Weights of other libraries: reading files, mapping names, changing architectures."""
