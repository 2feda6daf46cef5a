"""Stems for small encoders: statistics of residuals, spectra, quantisation and copies."""
