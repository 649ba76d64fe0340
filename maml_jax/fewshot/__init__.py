"""Few-shot classification of your own images with a trained checkpoint."""
