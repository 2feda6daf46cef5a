"""The model. Importing it registers the meta-architecture and the backbone with Detectron2."""

from loupe.modeling.backbone import PerceptionEncoder
from loupe.modeling.building import build_perception_encoder
from loupe.modeling.loupe import Loupe

__all__ = ["Loupe", "PerceptionEncoder", "build_perception_encoder"]
