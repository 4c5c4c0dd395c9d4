"""The mathematics: attribution patching and its relatives on batches of pairs of one shape. Knows nothing of Ray.

``engine`` scores any pairs; ``atp``, ``atp_ig``, ``atp_star`` and ``exact`` are the methods, ``metrics`` what they
differentiate, ``batches`` and ``runs`` the fewest forward runs for it.
"""
