"""Devices and processes: meshes, several processes as one run, compiled programs."""
