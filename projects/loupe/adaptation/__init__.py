"""Test-time adaptation guided by pseudo-labels (Sec. 2.3): the classifier teaches the segmenter.

The classifier's probability interpolates the two conditional embeddings, and its patch map is the
mask that the segmenter is trained with. Adaptation reads no label.
"""

from loupe.adaptation.pseudo_labels import pseudo_targets
from loupe.adaptation.runs import MODES, adapt_and_evaluate, adapted_predictions, safe_target
from loupe.adaptation.settings import AdaptationSettings
from loupe.adaptation.steps import TestTimeAdaptation
from loupe.adaptation.summary import AdaptationSummary

__all__ = [
    "MODES",
    "AdaptationSettings",
    "AdaptationSummary",
    "TestTimeAdaptation",
    "adapt_and_evaluate",
    "adapted_predictions",
    "pseudo_targets",
    "safe_target",
]
