"""Deciding: which task an input belongs to, by a fitted router that follows the hub; and whether inputs drift."""
