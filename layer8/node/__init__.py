"""A node of the network: links, circuits, SOCKS, tunnels and the roles that its configuration switches on."""
