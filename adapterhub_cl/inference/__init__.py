"""Inference: answers inputs, each with the adapter that it needs, in mixed batches."""
