"""Own a model, score tasks of pairs with it, and commit their tables."""
