"""Blobs, records, cached stages and leases, on top of `stores`."""
