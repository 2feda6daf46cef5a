"""Loupe: was a photograph forged, and where? A Detectron2 project.

Importing it registers the meta-architecture and the backbone with Detectron2, and does nothing
else.
"""

from loupe.config import add_loupe_config
from loupe.modeling.backbone import PerceptionEncoder
from loupe.modeling.loupe import Loupe

__all__ = ["Loupe", "PerceptionEncoder", "add_loupe_config"]
