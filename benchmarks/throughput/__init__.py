"""Images per second in sampling and training, and what they cost above a floor."""
