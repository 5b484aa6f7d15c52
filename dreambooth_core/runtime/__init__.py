"""Child processes, and the engines that distribute work to worker processes."""
