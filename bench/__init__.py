"""Side-by-side measurements of layer8 and what others run in its place; docs/performance.md says how they are made."""
