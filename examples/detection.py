"""COCO's annotations: boxes that follow their image, as torchvision's detectors take them, and drawn into a sheet.

    .venv/bin/python examples/detection.py annotations/instances_train2017.json sheet.png

The images are found beside the annotations (train2017), or where the argument root= of the Loader says. Every chain of
crops, flips, scales and rotations moves the boxes; what removes a box removes its class.
"""

import sys

import torch
from fuelrail.torch import Loader
from fuelrail.torch import fields as F
from fuelrail.torch import transforms as T
from torchvision.utils import draw_bounding_boxes, make_grid, save_image

annotations, sheet = sys.argv[1], sys.argv[2]
fields = {
    "image": F.Image(
        [
            T.ColorJitter(0.3, 0.3, 0.3),
            T.RandomZoomOut(fill=114, side_range=(1, 2)),
            T.RandomIoUCrop(),
            T.RandomHorizontalFlip(),
            T.Letterbox(256),
            T.SanitizeBoundingBoxes(min_size=2),
        ]
    ),
    "boxes": F.Boxes("boxes", max_rows=100, overflow="cut"),  # left, top, right, bottom in pixels
    "classes": F.Numbers("classes", like="boxes", dtype="int64"),
    "id": F.Numbers("image_id"),
}

with Loader(annotations, fields=fields, batch_size=16, shuffle=True, seed=3) as loader:
    names = loader.classes
    seen = torch.zeros(len(names), dtype=torch.int64)
    for at, batch in enumerate(loader):
        # What torchvision's detection models take: images from 0 to 1, and a dict each. Their class 0 is the background.
        images = batch["image"].float() / 255
        boxes, classes = batch["boxes"].list(), batch["classes"].list()
        targets = [{"boxes": box, "labels": label + 1} for box, label in zip(boxes, classes, strict=True)]
        assert all(len(target["boxes"]) == len(target["labels"]) for target in targets)
        seen += torch.bincount(torch.cat(classes), minlength=len(names))
        if at == 0:
            drawn = [
                draw_bounding_boxes(image, box, [names[one] for one in label.tolist()], width=2)
                if len(box)
                else image
                for image, box, label in zip(batch["image"], boxes, classes, strict=True)
            ]
            save_image(make_grid(torch.stack(drawn), nrow=4).float() / 255, sheet)
for name, count in zip(names, seen.tolist(), strict=True):
    print(f"{name}: {count} boxes")
print(f"{len(loader)} batches; the first one is drawn in {sheet}")
