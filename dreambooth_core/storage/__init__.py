"""Blobs, records, cached stages, leases and garbage collection, on top of `stores`."""
