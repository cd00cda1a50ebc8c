"""The socket proxy: publish a local port through a public server that sniffs Host and SNI."""
