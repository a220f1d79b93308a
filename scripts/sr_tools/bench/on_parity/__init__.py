"""Measurements on S3 and Postgres: the command ``bench_parity.py``."""
