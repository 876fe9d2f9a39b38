"""Answers that a running vLLM computes: asking it, loading adapters into it, proving that it answers as we do."""
