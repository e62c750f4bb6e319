from functools import partial

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import detr_panoptic.mask_head as mask_head
from detr_panoptic.mask_head import MaskAttention, MaskHead, upsampling_kernel

SKIP_CHANNELS = (13, 11, 7)


def plain_head(head: MaskHead, projected, attention, image_index, skips):
    """The head as the reference writes it: everything per row, upsampled maps and all."""
    x = torch.cat((projected[image_index], attention), dim=1)
    for block in head.blocks:
        x = block.norm(block.conv(x)).relu()
    for stage, skip in zip(head.stages, skips, strict=True):
        adapted = stage.adapter(skip)[image_index]
        x = stage.norm(stage.conv(adapted + F.interpolate(x, size=adapted.shape[-2:]))).relu()
    return head.predictor(x)[:, 0]


def inputs(sizes, rows=(0, 0, 1, 1, 1), dtype=torch.float64):
    torch.manual_seed(0)
    head = MaskHead(32, 4, SKIP_CHANNELS).to(dtype)
    projected = torch.randn(2, 32, *sizes[0], dtype=dtype)
    attention = torch.randn(len(rows), 4, *sizes[0], dtype=dtype)
    skips = [torch.randn(2, c, *size, dtype=dtype) for c, size in zip(SKIP_CHANNELS, sizes[1:], strict=True)]
    return head, projected, attention, torch.tensor(rows), skips


@pytest.mark.parametrize(
    "sizes",
    [
        [(3, 5), (6, 10), (12, 20), (24, 40)],
        [(3, 5), (5, 9), (9, 17), (17, 33)],  # images whose sides 32 does not divide
        [(3, 5), (6, 9), (11, 18), (22, 35)],  # one side at a time
        [(1, 5), (2, 9), (3, 18), (6, 36)],  # a map of one row
        [(3, 5), (3, 5), (6, 10), (12, 20)],  # a dilated backbone
    ],
)
def test_shared_arithmetic_changes_no_mask_and_no_gradient(sizes):
    head, *arguments = inputs(sizes)
    fast, plain = head(*arguments), plain_head(head, *arguments)
    torch.testing.assert_close(fast, plain, atol=1e-11, rtol=0)
    weight = torch.randn_like(plain)
    ours = torch.autograd.grad((fast * weight).sum(), list(head.parameters()))
    theirs = torch.autograd.grad((plain * weight).sum(), list(head.parameters()))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-9)


def test_a_row_does_not_depend_on_the_others():
    head, projected, attention, image_index, skips = inputs([(3, 5), (6, 10), (12, 20), (24, 40)])
    together = head(projected, attention, image_index, skips)
    alone = head(projected, attention[3:4], image_index[3:4], skips)
    torch.testing.assert_close(together[3:4], alone, atol=1e-12, rtol=0)


def test_chunks_bound_the_rows_and_change_nothing(monkeypatch):
    head, *arguments = inputs([(3, 5), (6, 10), (12, 20), (24, 40)])
    whole = head(*arguments)
    rows = []
    head.predictor.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    monkeypatch.setitem(mask_head.CHUNK_BYTES, "cpu", 2 * 24 * 40 * 2 * 8)  # two rows of the last stage
    with torch.no_grad():
        torch.testing.assert_close(head(*arguments), whole, atol=1e-12, rtol=0)
    head(*arguments)
    assert rows == [2, 2, 1, 5]  # where a gradient keeps every map, chunks save nothing


def test_what_rows_share_is_computed_once_per_image(monkeypatch):
    """The work does not grow with the rows where the reference's does: adapters see images, not queries."""
    head, *arguments = inputs([(3, 5), (6, 10), (12, 20), (24, 40)])
    seen = []
    for stage in head.stages:
        stage.adapter.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    monkeypatch.setitem(mask_head.CHUNK_BYTES, "cpu", 1)
    with torch.no_grad(), FlopCounterMode(display=False) as chunked:
        head(*arguments)
    assert seen == [2, 2, 2]  # images; 5 rows
    with FlopCounterMode(display=False) as whole:
        head(*arguments)
    assert chunked.get_total_flops() == whole.get_total_flops()


def multiplications(rows, head, projected, attention, image_index, skips):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head(projected, attention[:rows], image_index[:rows], skips)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("sizes", [[(3, 5), (6, 10), (12, 20), (24, 40)], [(3, 5), (5, 9), (9, 17), (17, 33)]])
def test_a_row_costs_what_is_its_own(sizes):
    """Of the first convolution the attention's channels, of a stage 16 products of a small map's pixel for 36."""
    head, *arguments = inputs(sizes)
    own = (4 * 36 * 9 + 36 * 16 * 9) * 3 * 5  # both blocks
    for (c_in, c_out), (height, width) in zip([(16, 8), (8, 4), (4, 2)], sizes, strict=False):
        own += c_in * c_out * 16 * height * width
        own += c_in * c_out * 6 * sum(sizes[sizes.index((height, width)) + 1]) if sizes[1] == (5, 9) else 0
    own += 2 * 9 * sizes[-1][0] * sizes[-1][1]
    assert multiplications(5, head, *arguments) - multiplications(4, head, *arguments) == own


def test_checkpointing_keeps_no_maps_and_changes_no_gradient():
    head, *arguments = inputs([(3, 5), (6, 10), (12, 20), (24, 40)])
    kept, gradients = [], []
    for checkpointing in (False, True):
        head.gradient_checkpointing = checkpointing
        head._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        saved: list[int] = []

        def keep(tensor, saved=saved):
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            masks = head.train()(*arguments)
        kept.append(sum(saved))
        gradients.append(torch.autograd.grad(masks.square().sum(), list(head.parameters())))
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)
    assert kept[1] < kept[0] / 2


def test_upsampling_kernel_is_upsampling_and_convolving():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 7, 3, 3, dtype=torch.float64), torch.randn(2, 7, 3, 5, dtype=torch.float64)
    plain = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    fast = F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(fast, plain)


def test_attention_is_one_softmax_over_heads_and_pixels_and_none_on_padding():
    torch.manual_seed(0)
    attention = MaskAttention(32, 4)
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[0], mask[1, :2, :3] = True, True
    maps = attention(torch.randn(2, 7, 32), torch.randn(2, 3, 5, 32), mask)
    torch.testing.assert_close(maps.sum((2, 3, 4)), torch.ones(2, 7))
    assert (maps.movedim(2, -1)[1, :, ~mask[1]] == 0).all()
