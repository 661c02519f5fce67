"""The optimiser: natural gradient, layer adapters and NG-SGD. Imports only ``ngsgd.ops`` from this project."""
