"""The lifecycle of one run: look at the evidence, decide, commit; and explain it afterwards."""
