"""Turning records of the control bus into rows: decode, validate, authorise, admit. Never any gate work."""
