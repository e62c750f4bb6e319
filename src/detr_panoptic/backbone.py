"""The convolutional backbone: a timm model cut after its last stage.

Follows models/backbone.py of facebookresearch/detr (29901c5), with these differences:
  * any timm model with maps of strides 4, 8, 16 and 32 serves, not only torchvision's ResNets;
  * frozen are the parameters up to the end of the stride-4 stage, found by the order of definition: for a ResNet
    the stem and layer1, as in the reference;
  * a frozen batch norm keeps the epsilon of its layer. That is the reference's 1e-5 for every ResNet; weights that
    were trained with another epsilon (tf_efficientnet: 1e-3) need their own.
"""

from typing import Any

import timm
from timm.layers import Format, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

STRIDES = (4, 8, 16, 32)
DILATED_STRIDES = (4, 8, 16, 16)


class Backbone(nn.Module):
    """Images to four maps of features.

    Args:
        name: timm's name of the model.
        dilation: keep the last stage at stride 16 (DC5).
        num_channels: channels of the images.
        pretrained: fetch timm's weights.

    Raises:
        ValueError: timm does not know the model, or it has no such maps.
    """

    def __init__(self, name: str, *, dilation: bool = False, num_channels: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        body = _create_feature_extractor(name, dilation=dilation, num_channels=num_channels, pretrained=pretrained)
        expected = DILATED_STRIDES if dilation else STRIDES
        features: Any = body.feature_info
        strides = tuple(features.reduction())
        if strides != expected:
            raise ValueError(f"`backbone` must have feature maps of strides {expected}, got {strides} from {name!r}.")
        statistics: Any = body.pretrained_cfg
        self.image_statistics = {"image_mean": list(statistics["mean"]), "image_std": list(statistics["std"])}
        self.channels: list[int] = features.channels()
        self._first_stage: str = features.module_name()[0].replace(".", "_")
        self._channels_last_output = getattr(body, "output_fmt", None) == Format.NHWC  # Swin and its kin
        self.body = freeze_batch_norm_2d(body)
        self.freeze_stem()
        self._keep_initial_weights()

    def freeze_stem(self) -> None:
        """Takes the gradient from every parameter up to the end of the stride-4 stage."""
        names = [name for name, _ in self.body.named_parameters()]
        first_stage = [i for i, name in enumerate(names) if name.replace(".", "_").startswith(self._first_stage + "_")]
        last = max(first_stage, default=-1)
        for parameter in list(self.body.parameters())[: last + 1]:
            parameter.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (B, C_i, H/s, W/s) of strides 4, 8, 16 and 32 from images (B, 3, H, W); the last is 16 if dilated."""
        maps = self.body(pixel_values)
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last_output else maps

    def _keep_initial_weights(self) -> None:
        # timm has initialized, or fetched, what it built: transformers shall not draw it anew. On the meta device
        # there is nothing yet, and the checkpoint fills it.
        for module in self.body.modules():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            module._is_hf_initialized = all(not tensor.is_meta for tensor in tensors)


def _create_feature_extractor(name: str, *, dilation: bool, num_channels: int, pretrained: bool) -> nn.Module:
    # Not every architecture takes `output_stride`: ask for it only where it says something.
    stride: dict[str, Any] = {"output_stride": DILATED_STRIDES[-1]} if dilation else {}
    try:
        return timm.create_model(
            name,
            pretrained=pretrained,
            features_only=True,
            out_indices=(-4, -3, -2, -1),
            in_chans=num_channels,
            **stride,
        )
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"`backbone` must be a timm model with four feature maps{' that can be dilated' if dilation else ''}, "
            f"got {name!r}: {error}"
        ) from error


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Padding of the images at the size of a map: (B, H, W) bool to (B, h, w) bool, True on the image.

    Nearest, as the reference takes it: a cell counts as image when its first pixel does.
    """
    return F.interpolate(mask[:, None].float(), size=size)[:, 0].bool()
