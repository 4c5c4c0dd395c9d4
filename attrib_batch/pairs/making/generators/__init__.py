"""The generators beside IOI, one module per task; the registry names them."""
