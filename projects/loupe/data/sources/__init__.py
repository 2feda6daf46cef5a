"""Where images and masks are: catalogue, formats, pairing, index."""
