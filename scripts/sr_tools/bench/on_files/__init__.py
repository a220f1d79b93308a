"""Measurements on files, SQLite and a spool: the command ``bench.py``."""
