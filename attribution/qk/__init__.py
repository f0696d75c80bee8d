"""QK attribution: why a head looks where it looks, as a sum over pairs of sources."""
