"""A learned augmentation network for your own classifier."""
