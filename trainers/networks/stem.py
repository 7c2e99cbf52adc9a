"""The small-image stem: first layers that keep the resolution which those for ImageNet reduce."""

from __future__ import annotations

from torch import nn
from torchvision.models import MaxVit, VisionTransformer

SMALL_IMAGE = 96
"""Images of at most this many pixels a side get the small stem by default."""


def is_small(stem: str, image_size: int) -> bool:
    """Whether `training.backbone.stem` means the small stem for images of this size."""
    return stem == "small" or (stem == "auto" and image_size <= SMALL_IMAGE)


def keep_resolution(model: nn.Module) -> None:
    """Replace the reducing first layers of a convolutional network, in place.

    - A first convolution of 7 x 7 or more with a stride becomes 3 x 3 with stride 1, and the max pooling after it goes (He et
      al. 2016, section 4.2, for 32 px); AlexNet's 11 x 11 with stride 4 becomes 3 x 3 too, but keeps its pooling.
    - A smaller one keeps its kernel and loses its stride (EfficientNet, MobileNet, RegNet).
    - Patches of 4 x 4 become patches of 2 x 2 (ConvNeXt, Swin).

    Networks without a reducing first layer (VGG) stay as they are; so does MaxViT, whose weights depend on its resolution.
    """
    if isinstance(model, MaxVit):
        return
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    path, conv = layers[0]
    assert isinstance(conv, nn.Conv2d)
    stride = conv.stride[0]
    if stride == 1:
        return
    if conv.kernel_size == conv.stride:
        model.set_submodule(path, _like(conv, kernel=2, stride=2, padding=0))
        return
    if conv.kernel_size[0] >= 7:
        model.set_submodule(path, _like(conv, kernel=3, stride=1, padding=1))
    else:
        conv.stride = (1, 1)
    pool = next((p for p, m in layers if isinstance(m, nn.MaxPool2d)), None)
    if pool is not None and stride == 2:
        model.set_submodule(pool, nn.Identity())


def with_patches(model: VisionTransformer, patch: int, patches: int) -> VisionTransformer:
    """A Vision Transformer like `model` (which may be on the meta device) with `patches` x `patches` patches of `patch` px."""
    return VisionTransformer(
        image_size=patch * patches,
        patch_size=patch,
        num_layers=len(model.encoder.layers),
        num_heads=model.encoder.layers[0].num_heads,
        hidden_dim=model.hidden_dim,
        mlp_dim=model.mlp_dim,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        num_classes=model.num_classes,
        representation_size=model.representation_size,
        norm_layer=model.norm_layer,
    )


def _like(conv: nn.Conv2d, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    new = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
