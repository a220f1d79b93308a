"""Measurements on a Kinesis stream, with the real KCL between: the command ``bench_kinesis.py``."""
