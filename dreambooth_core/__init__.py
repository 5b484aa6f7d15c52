"""DreamBooth as a pipeline: the domain, in plain Python."""

__version__ = "0.1.0"
