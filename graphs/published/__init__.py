"""Circuits of attention heads that were published for GPT-2 small, as data."""
