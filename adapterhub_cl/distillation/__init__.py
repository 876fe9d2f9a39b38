"""Distillation: a student learns to answer as each teacher does, by logits and, where asked, by hidden states."""
