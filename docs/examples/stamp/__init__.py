"""Stamp: an echo that says when. The example of docs/adding-a-protocol.md."""
