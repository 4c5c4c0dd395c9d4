"""How fast the engine is: ratios measured side by side, in one process, in alternating rounds."""
