"""Removes a task completely, and proves that nothing of it remains."""
