"""What circuits of several studies have in common."""
