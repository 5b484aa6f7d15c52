"""One metric per file, found by its name."""
