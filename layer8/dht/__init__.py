"""A Kademlia table of signed items (BEP 5, BEP 44), kept by nodes with the role `dht` for those behind circuits."""
