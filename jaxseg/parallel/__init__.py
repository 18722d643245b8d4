"""Devices and processes: meshes, runs of several processes, the compilation cache."""
