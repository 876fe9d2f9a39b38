"""Distillation: a student learns to answer like each teacher, from logits and optionally from hidden states."""
