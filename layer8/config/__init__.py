"""Frozen configuration from a TOML file, the environment and options, checked before anything listens."""
