"""Only for tools that still call it: everything that describes the package is in setup.cfg."""

from setuptools import setup

setup()
