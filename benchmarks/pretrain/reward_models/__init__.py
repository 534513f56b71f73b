"""Trains the small reward models of emoji-animals: CLIP, aesthetic head, captioner and BERT, with the real classes."""
