"""Reach and publish services with nobody in the middle who learns both who you are and what you do."""

__version__ = "0.1.0"
