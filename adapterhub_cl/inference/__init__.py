"""Inference: answers inputs with a task's adapter on the base."""
