"""The daemon: profile to wired objects, roles as loops, signals, and an orderly stop."""
