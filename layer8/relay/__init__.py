"""Links, onion circuits, streams, exits and paths: the network's own protocol."""
