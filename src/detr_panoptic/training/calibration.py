"""Initial weights of a new mask head and decoder, to the scale of what they get.

Not in the paper, whose backbone has features of about unit scale. A stage adds the adapted features of the image to
the rows' maps and normalizes the sum: features ten times larger than the maps take nine tenths of the gradient at
every stage, and attention maps, numbers near 0.001 beside the image's channels, take the rest. After three stages and
gradient clipping nothing is left that the optimizer could see, and masks stay the same for every query for thousands
of steps. Only first values change; the network and its checkpoints stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..modeling_detr_panoptic import DetrPanopticForSegmentation

ADAPTED_STD = 0.5  # of the image's share in a fusion stage: that of a normalized and rectified map
ATTENTION_SHARE = 0.1  # std of the attention's share in the first convolution, over that of the image's


FIRST_BIAS_STD = 1.0


@torch.no_grad()
def calibrate(model: DetrPanopticForSegmentation, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> None:
    """Scales the first values of a new model's decoder and mask head; arguments of `calibrate_mask_head`."""
    calibrate_decoder(model)
    calibrate_mask_head(model, pixel_values, pixel_mask)


@torch.no_grad()
def calibrate_decoder(model: DetrPanopticForSegmentation) -> None:
    """Draws the output bias of the decoder's first self-attention.

    Its values are zero, since queries start at zero, so that bias is all that it gives. At its usual zero the norm
    that follows divides zero by zero and multiplies the bias' gradient by 300 (its epsilon is 1e-5): of the gradient's
    norm at the start, 243 parts of 245 were this one vector's, and clipping shrank all others with it.
    """
    nn.init.normal_(model.model.decoder.layers[0].self_attn.out_proj.bias, std=FIRST_BIAS_STD)


@torch.no_grad()
def calibrate_mask_head(
    model: DetrPanopticForSegmentation, pixel_values: Tensor, pixel_mask: Tensor | None = None
) -> None:
    """Scales the adapters, and the first convolution's weights of the attention channels.

    Args:
        model: new; its backbone has its weights.
        pixel_values: (B, 3, H, W), some images of the training data.
        pixel_mask: (B, H, W), 1 on the image; None without padding.
    """
    was_training = model.training
    model.eval()
    features = model.model(pixel_values, pixel_mask)
    attention = model.attend(features, pixel_mask)
    head: Any = model.mask_head
    for stage, skip in zip(head.stages, features.feature_maps[-2::-1], strict=True):
        stage.adapter.weight *= ADAPTED_STD / stage.adapter(skip).std()
    weight = head.blocks[0].conv.weight
    channels = features.projected.shape[1]
    image_share = features.projected.std() * channels**0.5
    attention_share = attention.std() * (weight.shape[1] - channels) ** 0.5
    weight[:, channels:] *= ATTENTION_SHARE * image_share / attention_share
    model.train(was_training)
