"""Pure vocabulary that every protocol shares: errors, the session contract, buffers, addresses, limits."""
