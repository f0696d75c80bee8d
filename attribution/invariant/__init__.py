"""What weights alone say: virtual weights, de-embedding, pullbacks, logit attribution.

Only `expected` reads a corpus: it weighs virtual weights by how often they are used.
"""
