"""Pruning: adapters with lower rank or fewer bits, or fewer adapters."""
