"""Removes a task exactly, and proves that nothing of it remains."""
