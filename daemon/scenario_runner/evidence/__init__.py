"""Examining the evidence of a run: an engine run root and an evidence key in, a finding out."""
