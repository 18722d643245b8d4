"""Configs: each file is one result, as differences from the default config."""
