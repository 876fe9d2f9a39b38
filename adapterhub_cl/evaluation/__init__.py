"""Metrics, the accuracy matrix and the gate."""
