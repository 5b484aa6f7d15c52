"""What scores are measured with, what they are worth, and what is decided by them."""
