"""The papers' comparisons of dictionaries on a model of one's own: equal tokens, tuning, seeds."""
