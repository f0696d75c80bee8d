"""What edges add up to along all paths, and how that compares with what happens."""
