"""The fail-closed core: hashing laws, the verified set, receipts, verdict. Pure: bytes and digests in, values out."""
