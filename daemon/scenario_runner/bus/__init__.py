"""The control bus: the envelope, and publishing signals to a spool directory or a stream."""
