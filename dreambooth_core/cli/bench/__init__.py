"""Published protocols, one file each, found by its name."""
