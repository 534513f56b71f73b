"""Training on several processes (ranks): what they exchange, which images are whose, sharded weights."""
