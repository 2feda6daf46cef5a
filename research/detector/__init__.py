"""What the shipped detector is measured, calibrated and trained with."""
