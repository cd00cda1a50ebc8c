"""The only importer of `cryptography` and PyNaCl: keys, certificates and proofs."""
