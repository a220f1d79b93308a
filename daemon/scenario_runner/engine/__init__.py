"""The engine: invoke it, follow it to its end, and never launch one attempt twice."""
