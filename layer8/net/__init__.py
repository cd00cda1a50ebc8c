"""The meeting with Twisted and the kernel: adapters, TLS, the pump, services and storage."""
