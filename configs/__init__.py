"""Configs: `default.py` has every key, each other file is one result."""
