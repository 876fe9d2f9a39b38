"""Adapters: a LoRA on disk and on a base: attach, check, read, write, import and export."""
