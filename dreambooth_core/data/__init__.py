"""Photo sets: checks, captions, masks, normalised copies, versions, buckets and contact sheets."""
