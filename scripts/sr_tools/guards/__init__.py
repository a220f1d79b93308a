"""Deletes the guards of the code one at a time in a copy of the tree, and names those that no test misses."""
