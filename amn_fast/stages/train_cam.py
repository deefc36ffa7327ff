"""train-cam: the classifier whose activations start everything."""

import torch
from torch.nn import functional as F

from amn_fast.models import CamNet
from amn_fast.stages._pictures import ClassifierPictures
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import train


def _train(work: Workspace) -> None:
    settings, dataset = work.config.train_cam, work.dataset
    torch.manual_seed(work.config.seed)
    net = CamNet(len(dataset.classes), work.config.backbone, work.config.weights).to(work.device)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in net.backbone.parameters() if p.requires_grad], "lr": settings.lr},
            {"params": net.new_parameters(), "lr": settings.new_lr},
        ],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    pictures = ClassifierPictures(dataset, net.backbone.normalize, settings.crop, settings.long_side, work.config.seed)

    def loss_of(batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = (part.to(work.device, non_blocking=True) for part in batch)
        return F.multilabel_soft_margin_loss(net(images), labels)

    train(work, "cam", net, optimizer, pictures, len(dataset.ids), settings, loss_of)


stage = Stage(
    name="train-cam",
    uses=("backbone", "weights", "train_cam"),
    needs=(),
    makes=("weights/cam.safetensors", "weights/cam.checkpoint.pt"),
    work=_train,
)
run = stage.run
