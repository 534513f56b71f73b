"""Models behind learned rewards: CLIP, captioners, BERTScore, served models, and their weights."""
