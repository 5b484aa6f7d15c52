"""What a training is made of: its process, its data, and all that stands by its loop."""
