"""Rebasing: the tasks of a hub are learned again in a hub on another base, each measured against its old score."""
