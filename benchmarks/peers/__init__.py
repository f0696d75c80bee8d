"""Scripts that run in a peer's own virtual environment; nothing in the project imports them."""
