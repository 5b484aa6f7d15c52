"""A folder of photos as it is looked through: which they are, what stands beside them, what is wrong."""
