"""Adapters: a LoRA on disk and on a base: attached, checked, read, written, imported and exported."""
