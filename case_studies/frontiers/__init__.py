"""Frontiers: circuits of features, of neurons, of heads and random ones, on the same axes."""
