"""One typed table of methods and events, and its bindings."""
