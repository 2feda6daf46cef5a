"""The models. Importing it registers meta-architectures and backbones with Detectron2."""

from loupe.modeling.backbone import PerceptionEncoder
from loupe.modeling.building import build_perception_encoder
from loupe.modeling.expert.expert import ForgeryExpert
from loupe.modeling.loupe import Loupe

__all__ = ["ForgeryExpert", "Loupe", "PerceptionEncoder", "build_perception_encoder"]
