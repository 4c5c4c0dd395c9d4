"""Import pairs from the files that people have: one recipe per published layout."""
