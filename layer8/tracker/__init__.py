"""Lists of relays, signed by the relays themselves: an index for those who look for some, never a source of truth."""
