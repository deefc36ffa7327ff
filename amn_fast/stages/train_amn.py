"""train-amn: the network that sees each pixel and each picture's label."""

import torch

from amn_fast.models import AmnNet
from amn_fast.ops.pixel_loss import pixel_loss
from amn_fast.stages import refine_seed
from amn_fast.stages._pictures import SeedPictures
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import train


def _train(work: Workspace) -> None:
    settings, dataset = work.config.train_amn, work.dataset
    work.require("cam_seed")
    torch.manual_seed(work.config.seed)
    net = AmnNet(len(dataset.classes), work.config.backbone, work.config.weights).to(work.device)
    optimizer = torch.optim.Adam(
        [
            {"params": [p for p in net.backbone.parameters() if p.requires_grad], "lr": settings.lr},
            {"params": net.new_parameters(), "lr": settings.new_lr},
        ],
        weight_decay=settings.weight_decay,
    )
    pictures = SeedPictures(
        dataset, work.root / "cam_seed", net.backbone.normalize, settings.crop, settings.rescale, work.config.seed
    )

    def loss_of(batch: list[torch.Tensor]) -> torch.Tensor:
        images, seeds, labels = (part.to(work.device, non_blocking=True) for part in batch)
        return pixel_loss(net(images, labels), seeds, eps=settings.eps)

    train(work, "amn", net, optimizer, pictures, len(dataset.ids), settings, loss_of)


stage = Stage(
    name="train-amn",
    uses=("backbone", "weights", "train_amn"),
    needs=(refine_seed.stage,),
    makes=("weights/amn.safetensors", "weights/amn.checkpoint.pt"),
    work=_train,
)
run = stage.run
