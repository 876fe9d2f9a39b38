"""Bases: find, fingerprint, load and quantise the frozen pretrained model. Importing this does not import torch."""

from adapterhub_cl.bases.fingerprint import fingerprint
from adapterhub_cl.bases.sources import QUANTIZATIONS, TINY, resolve

__all__ = ["QUANTIZATIONS", "TINY", "fingerprint", "resolve"]
