"""deftly trains robots to follow instructions."""

__version__ = "0.1.0"
