"""Runs while they are trained: `routes` tells how they stand, `watch` notices what is new of them."""
