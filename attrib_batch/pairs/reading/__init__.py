"""Read tables of prompt pairs that may be larger than memory, from files and object stores."""
