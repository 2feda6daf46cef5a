"""Pixels: decoding, degradation, augmentation."""
