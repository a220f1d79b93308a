"""Bounded reading and digesting of engine artifacts by reference. Engine bytes are hostile until digested."""
