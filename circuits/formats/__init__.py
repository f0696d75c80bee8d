"""Checkpoint formats of the field: one a module, all in `circuits.formats.registry`."""
