"""The LoRA bank: many adapters on one frozen base, chosen and mixed row by row in one batch."""
