"""Compiles the CPU backend; everything else about the package is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["src/ngsgd/ops/cpu/build_bindings.py:ffi"])
