"""Statements for people: what the authority holds, read on a connection that cannot write.

A page costs less than a millisecond however many runs there are. Each statement repeats the predicate of the partial
index that serves it, literally; pages begin after the last row of the page before (never OFFSET); texts are searched by
prefix; READY runs are never counted.
"""
