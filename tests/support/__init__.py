"""What several tests share: tiny models, demo pairs, and an oracle to compare scores with."""
