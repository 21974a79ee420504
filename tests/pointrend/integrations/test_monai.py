"""MONAI: transforms equal resampling followed by argmax and keep the geometry; the head goes on its networks."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, UNet, VNet
from monai.transforms import AsDiscrete, Compose, Resize
from torch.nn import functional as F

from pointrend import PointRend, taps
from pointrend.integrations.monai import RenderLabels, RenderLabelsd
from pointrend.sampling import PointSampling

# ---- transforms


LOGITS = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))


SIZE = (11, 9, 16)


@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_resize_then_argmax(align_corners):
    dense = Compose([Resize(SIZE, mode="trilinear", align_corners=align_corners), AsDiscrete(argmax=True)])
    labels = RenderLabels(SIZE, align_corners=align_corners)(LOGITS)
    assert labels.shape == (1, *SIZE)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), dense(LOGITS).as_tensor().long())


def test_arrays_and_two_axes():
    labels = RenderLabels((9, 13))(LOGITS[:, 2].numpy())
    assert isinstance(labels, np.ndarray)
    np.testing.assert_array_equal(labels, RenderLabels((9, 13))(LOGITS[:, 2]).numpy())


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_affine_follows_the_grid(align_corners):
    affine = torch.tensor(
        [[0.0, -3.0, 0.0, 5.0], [2.0, 0.0, 0.0, -7.0], [0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    ).double()
    labels = RenderLabels(SIZE, align_corners=align_corners)(MetaTensor(LOGITS, affine=affine, meta={"name": "case"}))
    assert labels.meta["name"] == "case"
    for corner in ((0, 0, 0), (1, 1, 1), (1, 0, 1)):
        # corners of the field of view (or outermost centres) stay where they are in the world
        share, inset = torch.tensor([*corner, 1.0]).double(), 0.0 if align_corners else 0.5
        old, new = (
            torch.cat([share[:3] * (torch.tensor(size) - 1 + 2 * inset) - inset, share[3:]])
            for size in (LOGITS.shape[1:], SIZE)
        )
        torch.testing.assert_close(labels.affine @ new, affine @ old)


def test_dictionary_form_takes_the_grid_of_an_image():
    image = MetaTensor(torch.zeros(1, *SIZE), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    data = {"image": image, "pred": MetaTensor(LOGITS), "other": 3}
    result = RenderLabelsd("pred", like="image")(data)
    assert torch.equal(result["pred"].as_tensor(), RenderLabels(SIZE)(LOGITS))
    assert torch.equal(result["pred"].affine, image.affine)
    assert result["other"] == 3
    assert data["pred"].shape == LOGITS.shape


def test_dictionary_form_with_a_size():
    result = RenderLabelsd(["pred", "absent"], SIZE, allow_missing_keys=True)({"pred": LOGITS})
    assert torch.equal(result["pred"], RenderLabels(SIZE)(LOGITS))
    with pytest.raises(KeyError, match="absent"):
        RenderLabelsd(["pred", "absent"], SIZE)({"pred": LOGITS})


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="needs a spatial_size or an image to be like, got neither"):
        RenderLabels()(LOGITS)
    with pytest.raises(ValueError, match="size must be 3 whole numbers"):
        RenderLabels((4, 5))(LOGITS)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.full((2, 4, 5), float("nan")), "logits must be finite"),
        (torch.zeros(4, 5), "size must be 1 whole numbers|logits must be"),
        (torch.zeros(0, 4, 5), "1 to 65536 classes"),
    ],
)
def test_the_transform_refuses(logits, message):
    with pytest.raises(ValueError, match=message):
        RenderLabels((8, 9))(logits)


# ---- networks


def swin():
    return SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=3)


NETWORKS = [
    pytest.param(lambda: UNet(3, 1, 3, (4, 8, 16), (2, 2)), {"fine": ("model.0", 4)}, (8, 12, 16), id="UNet"),
    pytest.param(
        lambda: SegResNet(3, 8, 1, 3),
        {"fine": ("convInit", 8), "deep": ("up_layers.1", 16)},
        (8, 16, 24),
        id="SegResNet",
    ),
    pytest.param(
        lambda: DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16]),
        {"fine": ("input_block", 4), "deep": ("upsamples.0", 8)},
        (8, 12, 16),
        id="DynUNet",
    ),
    pytest.param(swin, {"fine": ("encoder1", 12), "deep": ("decoder3", 24)}, (64, 32, 32), id="SwinUNETR"),
    pytest.param(lambda: VNet(3, 1, 3), {"fine": ("in_tr", 16), "deep": ("up_tr64", 64)}, (32, 16, 16), id="VNet"),
]


@pytest.mark.parametrize(("build", "tapped", "size"), NETWORKS)
def test_the_head_goes_on_networks_of_monai(build, tapped, size):
    torch.manual_seed(0)
    model = taps(build(), {name: path for name, (path, _) in tapped.items()})
    head = PointRend(
        classes=3,
        features={name: width for name, (_, width) in tapped.items()},
        image_channels=1,
        sampling=PointSampling(num_points=200),
    )
    image = torch.randn(2, 1, *size)
    labels = torch.randint(0, 3, (2, *size))
    logits, features = model(image)
    assert {name: maps.shape[1] for name, maps in features.items()} == {n: w for n, (_, w) in tapped.items()}
    for maps in features.values():
        maps.retain_grad()
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    head.loss(logits, features, image, labels, generators=generators).backward()
    for maps in features.values():
        assert (maps.grad != 0).any()
    assert all(parameter.grad is not None for parameter in head.parameters())
    refined = head.refine(logits, features, image, [2 * n for n in size], num_points=100)
    assert refined.labels.shape == (2, *(2 * n for n in size))


def test_a_unet_is_trained_with_the_head_and_refinement_helps():
    # a U-Net sees a ball at half the resolution; the head reads the image at the full one
    torch.manual_seed(0)
    axis = torch.linspace(-1, 1, 24)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    labels = ((z - 0.1) ** 2 + y**2 + (x + 0.1) ** 2 < 0.4).long()[None]
    image = labels[:, None].float() + 0.1 * torch.randn(1, 1, 24, 24, 24)
    model = taps(UNet(3, 1, 2, (4, 8), (2,)), {"fine": "model.0"})
    sampling = PointSampling(num_points=256)
    head = PointRend(classes=2, features={"fine": 4}, image_channels=1, width=16, sampling=sampling)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for step in range(40):
        coarse, features = model(F.avg_pool3d(image, 2))
        dense = F.cross_entropy(F.interpolate(coarse, scale_factor=2, mode="trilinear"), labels)
        generators = [torch.Generator().manual_seed(step)]
        points = head.loss(coarse, features, image, labels, generators=generators)
        optimizer.zero_grad()
        (dense + points).backward()
        optimizer.step()
        losses.append(points.item())
    coarse, features = model(F.avg_pool3d(image, 2))
    refined = head.refine(coarse, features, image, (24, 24, 24), num_points=2000)
    wrong_before = (refined.unrefined != labels).sum()
    wrong_after = (refined.labels != labels).sum()
    assert losses[-1] < losses[0] / 4
    assert wrong_after < wrong_before / 2
