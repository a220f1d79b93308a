"""Measuring the installed command: worlds, references, checks and the report."""
