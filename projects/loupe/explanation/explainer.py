"""The explainer, a Detectron2 meta-architecture: image, mask and question in, an explanation out.

    items  -guide->        regions         the detector's mask, where the item brings none
           -pixel_values-> (B, 7, H, W)    image, masked image, and where the canvas shows them
           -tower, blend, projector->      tokens of the language model
           -language model->               loss on the explanation's tokens, or text

The language model and the tower are frozen; LoRA and the projector train.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.explanation.adapters import as_settings, as_tensor, check_settings
from loupe.explanation.batches import IGNORED, TokenBatch, Tokens, encode, pad, supervised
from loupe.explanation.building import explainer_arguments
from loupe.explanation.guidance import guided
from loupe.explanation.prompts import TEMPLATES, fill, question_of
from loupe.explanation.region_features import binary_mask, masked_image, tower_of
from loupe.modeling.canvas import stack_padded
from loupe.modeling.image_model import ImageModel

Item = dict[str, Any]


class Written(NamedTuple):
    """An explanation.

    Attributes:
        text: Without the end mark.
        complete: False = it was cut at the limit of tokens.
    """

    text: str
    complete: bool


@META_ARCH_REGISTRY.register()
class Explainer(ImageModel):
    """Says in words what was forged, where, and what betrays it.

    Args:
        vlm: A LLaVA-class model or Qwen2-VL of transformers whose tower is a `RegionTower`.
        tokenizer: Its fast tokenizer.
        guide: A Loupe that finds the region where an item brings none; None = there is none.
        template: Name of a template of `prompts`.
        image_id: The image's token.
        image_tokens: Tokens that the tower gives.
        trained: Names of the parameters that train.
        settings: What belongs to the adapters: alpha, template, base and its digest.
        background: Of the masked image.
        mask_source: "item" or "guide".
        tell_region: Whether questions tell in words what was measured of the region.
        max_new_tokens: Longest explanation.
        patch_size: Sides of the canvas are multiples of it.
        pixel_mean: Mean of RGB pixels, 0..255.
        pixel_std: Their deviation.
    """

    vlm: Any
    saved_settings: Tensor

    @configurable
    def __init__(
        self,
        *,
        vlm: nn.Module,
        tokenizer: Any,
        guide: nn.Module | None,
        template: str,
        image_id: int,
        image_tokens: int,
        trained: Sequence[str],
        settings: dict[str, Any],
        background: str,
        mask_source: str,
        tell_region: bool = False,
        max_new_tokens: int,
        patch_size: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(pixel_mean, pixel_std)
        self.vlm, self.tokenizer, self.guide = vlm, tokenizer, guide
        self.template = TEMPLATES[template]
        self.image_id, self.image_tokens = image_id, image_tokens
        self.settings = settings
        self.background, self.mask_source = background, mask_source
        self.tell_region = tell_region
        self.max_new_tokens, self.patch_size = max_new_tokens, patch_size
        self.register_buffer("saved_settings", as_tensor(settings))
        kept = set(trained)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in kept)
        self._saved = kept | {"saved_settings"}
        self._checked = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that a configuration describes."""
        return explainer_arguments(cfg)

    def train(self, mode: bool = True) -> Explainer:
        """Sets training mode; the detector stays in evaluation mode, as the frozen tower does."""
        super().train(mode)
        if self.guide is not None:
            self.guide.eval()
        tower = tower_of(self.vlm)
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            tower.eval()
        return self

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """What trains, and the settings that belong to it; not the base model."""
        own = super().state_dict(*args, prefix=prefix, keep_vars=keep_vars)
        kept = OrderedDict((n, v) for n, v in own.items() if n.removeprefix(prefix) in self._saved)
        if destination is None:
            return kept
        destination.update(kept)
        return destination

    def forward(
        self, batched_inputs: list[Item], counts: Tensor | None = None
    ) -> dict[str, Tensor] | list[Item]:
        """Losses in training, explanations in evaluation.

        Args:
            batched_inputs: Items of the explanation mapper: `image` uint8 (3, H, W), `valid_size`,
                `question`; `region`, (H, W) bool, or None for the whole image; in training
                `explanation`. Or `features`, (2, T, C), in place of image and region.
            counts: Sums of `loss_counts` over the optimiser step, divided by the number of
                processes; None = this batch alone.

        Returns:
            Named losses; or for each item what `guidance.guided` says of it, `explanation` and
            `complete`. An item with an `error` gives that error alone.
        """
        self.check()
        if not self.training:
            return self.explain(batched_inputs)
        total = self.loss_counts(batched_inputs) if counts is None else counts
        batch = pad(self._tokens(batched_inputs), self._padding).to(self.device)
        summed = self.token_losses(batch, self.pixel_values(batched_inputs)).sum()
        return {"loss_tokens": summed / total.clamp(min=1)[0].to(summed)}

    def check(self) -> None:
        """Compares the settings that came with the weights with those of the model, once.

        Raises:
            CheckpointError: They differ.
        """
        if not self._checked:
            check_settings(as_settings(self.saved_settings.cpu()), self.settings)
            self._checked = True

    def loss_counts(self, batched_inputs: list[Item]) -> Tensor:
        """Number of supervised tokens, (1,) float64 on the CPU; counts add up."""
        counted = sum(supervised(tokens) for tokens in self._tokens(batched_inputs))
        return torch.tensor([counted], dtype=torch.float64)

    def token_losses(self, batch: TokenBatch, pixel_values: Tensor | None) -> Tensor:
        """Cross-entropy of each supervised token, (N,).

        The image's token is an entry of the vocabulary that is never written: its logit stays out
        of the softmax.
        """
        hidden = self.vlm.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            use_cache=False,
            **self._shown(batch, pixel_values),
        ).last_hidden_state
        labels = batch.labels[:, 1:]
        wanted = labels != IGNORED
        logits = self.vlm.lm_head(hidden[:, :-1][wanted]).float()
        logits = logits.index_fill(
            1, torch.tensor([self.image_id], device=logits.device), float("-inf")
        )
        return F.cross_entropy(logits, labels[wanted], reduction="none")

    def pixel_values(self, items: list[Item]) -> Tensor:
        """What the tower is given: (B, 7, H, W), or features (B, 2, T, C)."""
        if "features" in items[0]:
            features = torch.stack([item["features"] for item in items])
            return features.to(self.device, torch.float32)
        images = stack_padded([item["image"].to(self.device) for item in items], self.patch_size)
        images = self.normalise(images)
        shown = torch.zeros_like(images[:, :1])
        region = torch.zeros_like(shown)
        for index, item in enumerate(items):
            height, width = item["valid_size"]
            shown[index, :, :height, :width] = 1
            mask = item.get("region")
            if mask is None:
                region[index] = shown[index]
                continue
            mask = torch.as_tensor(mask)[None, None, :height, :width].to(self.device)
            region[index, :, :height, :width] = binary_mask(mask, (height, width))[0]
        images = images * shown  # Padding is the mean colour.
        values = [images, masked_image(images, region, self.background) * shown, shown]
        return torch.cat(values, dim=1)

    @torch.no_grad()
    def explain(self, batched_inputs: list[Item]) -> list[Item]:
        """Explanations of a batch of items; see `forward`."""
        readable = [item for item in batched_inputs if "error" not in item]
        source = self.guide if self.mask_source == "guide" else None
        asked = guided(readable, source, tell=self.tell_region)
        found = iter(self.write([item for item, _ in asked]))
        outputs = iter([output for _, output in asked])
        results: list[Item] = []
        for item in batched_inputs:
            if "error" in item:
                results.append({"error": item["error"]})
                continue
            written = next(found)
            results.append(
                next(outputs) | {"explanation": written.text, "complete": written.complete}
            )
        return results

    @torch.no_grad()
    def write(self, items: list[Item]) -> list[Written]:
        """Writes explanations, greedily; nothing is drawn at random."""
        if not items:
            return []
        prompts = [
            fill(self.template, item.get("question") or question_of(marked=False)) for item in items
        ]
        tokens = [
            encode(self.tokenizer, prompt, self.image_id, self.image_tokens) for prompt in prompts
        ]
        batch = pad(tokens, self._padding, left=True).to(self.device)
        return self.generate(batch, self.pixel_values(items))

    def generate(self, batch: TokenBatch, pixel_values: Tensor | None) -> list[Written]:
        """Text behind each prompt, up to its end or `max_new_tokens`."""
        end = self.tokenizer.convert_tokens_to_ids(self.template.end)
        ids = self.vlm.generate(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            **self._shown(batch, pixel_values),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            suppress_tokens=[self.image_id],
            eos_token_id=end,
            pad_token_id=self._padding,
        )
        written = []
        for row in ids[:, batch.ids.shape[1] :].tolist():
            complete = end in row
            own = row[: row.index(end)] if complete else row
            written.append(Written(self.tokenizer.decode(own).strip(), complete))
        return written

    def _shown(self, batch: TokenBatch, pixel_values: Tensor | None) -> dict[str, Tensor]:
        if pixel_values is None:
            return {}
        return tower_of(self.vlm).inputs(pixel_values, batch.ids == self.image_id)

    @property
    def _padding(self) -> int:
        own = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if own is None else own

    def _tokens(self, items: list[Item]) -> list[Tokens]:
        return [
            encode(
                self.tokenizer,
                fill(self.template, item["question"], item["explanation"]),
                self.image_id,
                self.image_tokens,
            )
            for item in items
        ]
