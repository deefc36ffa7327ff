"""train-irn: class boundaries (and displacements) from the refined AMN seeds."""

import torch

from amn_fast.data.augment import resize_image
from amn_fast.models import IrnNet
from amn_fast.ops.pair_loss import pair_loss
from amn_fast.stages import refine_amn_seed
from amn_fast.stages._pictures import SeedPictures
from amn_fast.stages._stage import Stage, Workspace, track
from amn_fast.stages._training import load_weights, save_weights, train


def _train(work: Workspace) -> None:
    settings, dataset = work.config.train_irn, work.dataset
    work.require("amn_seed")
    torch.manual_seed(work.config.seed)
    net = IrnNet(work.config.backbone, work.config.weights).to(work.device)
    groups = [{"params": net.edge_parameters(), "lr": settings.lr}]
    if settings.displacement:
        groups.append({"params": net.displacement_parameters(), "lr": settings.new_lr})
    optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    pictures = SeedPictures(
        dataset, work.root / "amn_seed", net.backbone.normalize, settings.crop, settings.rescale, work.config.seed
    )

    def loss_of(batch: list[torch.Tensor]) -> torch.Tensor:
        images, seeds, _ = (part.to(work.device, non_blocking=True) for part in batch)
        edges, displacements = net(images)
        losses = pair_loss(edges, displacements, seeds[:, 2::4, 2::4].contiguous(), radius=settings.radius)
        return losses.total if settings.displacement else losses.edges

    train(work, "irn", net, optimizer, pictures, len(dataset.ids), settings, loss_of)
    if settings.displacement:
        load_weights(work.weights("irn"), net)
        _store_mean_displacement(work, net)
        save_weights(work.weights("irn"), net)


@torch.no_grad()
def _store_mean_displacement(work: Workspace, net: IrnNet) -> None:
    """The mean over all training pictures of the displacement field, each picture at its size and counting once."""
    net.eval()
    mean = net.mean_displacement
    mean.zero_()
    total = torch.zeros(2, dtype=torch.float64)
    for id in track("mean displacement", work.dataset.ids, len(work.dataset.ids)):
        image = work.dataset.image(id)
        factor = min(1.0, work.config.train_irn.crop / max(image.shape[:2]))
        image = resize_image(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        _, displacement = net(net.backbone.normalize(image)[None].to(work.device))
        total += displacement[0].double().mean((1, 2)).cpu()
    mean.copy_(total / len(work.dataset.ids))


stage = Stage(
    name="train-irn",
    uses=("backbone", "weights", "train_irn"),
    needs=(refine_amn_seed.stage,),
    makes=("weights/irn.safetensors", "weights/irn.checkpoint.pt"),
    work=_train,
)
run = stage.run
