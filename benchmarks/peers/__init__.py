"""Scripts that run in a peer's own virtual environment; nothing in the project imports them.

But for `costs`, so that both sides of a comparison are measured by the same clock.
"""
