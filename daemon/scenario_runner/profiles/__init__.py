"""Wiring and policy profiles: read strictly, every problem named with its place and remedy."""
