"""The browser tunnel: a page asks its backend through a relay that knows who asks and not what (Oblivious HTTP)."""
