"""charrnn: train a character-level recurrent network on any text, sample from it, score texts with it."""

__version__ = "0.1.0"
