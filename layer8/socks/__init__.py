"""SOCKS5 into the network for programs of this machine, and tunnels by hand-written paths."""
