"""The interactive page of a circuit: one HTML file around the same figure, or a notebook's cell."""

from graphs.page.contexts import ShownContext
from graphs.page.page import CircuitPage, circuit_page

__all__ = ["CircuitPage", "ShownContext", "circuit_page"]
