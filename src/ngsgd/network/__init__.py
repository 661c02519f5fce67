"""Layer 2, the network: components, topology, the acoustic model and its file. Knows no data."""
