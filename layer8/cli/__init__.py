"""The `layer8` command."""
