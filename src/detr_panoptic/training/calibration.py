"""Calibration: scales the initial weights of a new mask head and decoder to their inputs.

Not in the paper, whose backbone has features of about unit scale. Each stage of the mask head adds adapted features of
the image to the maps of the queries and normalizes the sum. If the features are ten times larger than the maps, they
take nine tenths of the gradient at every stage; attention maps, with values near 0.001, lose most of the rest. After
three stages and gradient clipping, almost no gradient reaches the attention, and the masks of all queries stay the
same for thousands of steps. Only initial values change, not the network or its checkpoints.
"""

import torch
from torch import Tensor, nn

from ..modeling_detr_panoptic import DetrPanopticForSegmentation

ADAPTED_STD = 0.5  # of adapted features: about that of a normalized and rectified map
ATTENTION_SHARE = 0.1  # std of the attention's contribution to the first convolution, relative to the image's
FIRST_BIAS_STD = 1.0


@torch.no_grad()
def calibrate(model: DetrPanopticForSegmentation, pixel_values: Tensor, pixel_mask: Tensor) -> None:
    """Calibrates the decoder and the mask head of a new model.

    Args:
        model: changed in place; its backbone has its weights.
        pixel_values: (B, 3, H, W), some training images.
        pixel_mask: (B, H, W), 1 on the image.
    """
    calibrate_decoder(model)
    calibrate_mask_head(model, pixel_values, pixel_mask)


@torch.no_grad()
def calibrate_decoder(model: DetrPanopticForSegmentation) -> None:
    """Draws the output bias of the decoder's first self-attention at random.

    The values of this attention are zero because queries start at zero, so its output is the bias alone. With a bias
    of zero, the following norm divides zero by its epsilon and multiplies the gradient of the bias by 300: at the
    start, 243 parts of 245 of the gradient norm belonged to this one vector, and clipping shrank all other gradients.
    """
    nn.init.normal_(model.model.decoder.layers[0].self_attn.out_proj.bias, std=FIRST_BIAS_STD)


@torch.no_grad()
def calibrate_mask_head(model: DetrPanopticForSegmentation, pixel_values: Tensor, pixel_mask: Tensor) -> None:
    """Scales the adapters and the weights of the attention channels in the first convolution, see `calibrate`."""
    was_training = model.training
    features = model.eval().model(pixel_values, pixel_mask)
    attention, head = model.attend(features), model.mask_head
    for stage, skip in zip(head.stages, features.feature_maps[-2::-1], strict=True):
        stage.adapter.weight *= ADAPTED_STD / stage.adapter(skip).std()
    weight, channels = head.blocks[0].conv.weight, features.projected.shape[1]
    image_share = features.projected.std() * channels**0.5
    attention_share = attention.std() * (weight.shape[1] - channels) ** 0.5
    weight[:, channels:] *= ATTENTION_SHARE * image_share / attention_share
    model.train(was_training)
