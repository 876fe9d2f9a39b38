"""Pruning: adapters with fewer ranks, fewer bits, or fewer of them."""
