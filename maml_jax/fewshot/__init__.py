"""Few-shot classification of your own images."""
