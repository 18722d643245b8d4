"""Puts `configs/` into the package as `jaxseg/configs`; the rest is pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxseg*"]), "jaxseg.configs"],
    package_dir={"jaxseg.configs": "configs"},
)
