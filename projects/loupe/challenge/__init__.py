"""Submissions to challenges: writers and validators."""
