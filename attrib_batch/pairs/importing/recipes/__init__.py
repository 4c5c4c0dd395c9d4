"""The recipes, one module per published layout; the registry names them."""
