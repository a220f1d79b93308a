"""The object store: conditional creates, guarded replaces, bounded reads. One contract, several backends."""
