"""Fakes that are the real thing on a fake wire."""
