"""The mathematics: attribution patching and its relatives on batches of pairs of one shape. Knows nothing of Ray.

``engine`` scores any pairs; ``methods`` has a module for each method, ``metrics`` is what they differentiate, and
``batches`` and ``forward`` compute it in the fewest forward passes.
"""
