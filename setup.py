"""What pyproject.toml cannot say: all packages under adapterhub_cl, and cl_adapter from the folder cli/."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["adapterhub_cl", "adapterhub_cl.*"]), "cl_adapter"])
