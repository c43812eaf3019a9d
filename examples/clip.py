"""Images and captions from tar shards, and a small CLIP that learns which belong together.

    .venv/bin/python examples/clip.py "shards/train-{00000..00331}.tar"

Each record has an image and a text of the same name (0001.jpg, 0001.txt), as img2dataset writes them. Captions arrive
as `list[str]`, for a tokenizer of your choice; here each byte is a token, and the bytes come as one padded array with
their lengths. A record whose caption is missing, too long or not UTF-8 is a bad record, by name. The state
has the image and its caption stopped at the same place.
"""

import sys

import torch
from fuelrail.torch import Loader
from fuelrail.torch import fields as F
from fuelrail.torch import transforms as T
from torch import nn

shards = sys.argv[1]
fields = {
    "image": F.Image([T.RandomResizedCrop(32, scale=(0.8, 1.0)), T.Normalize(*T.IMAGENET)]),
    "caption": F.Text("txt", max_bytes=64),
}


class Clip(nn.Module):
    """Two towers that meet in one space."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 32, 4, 4),
            nn.GELU(),
            nn.Conv2d(32, 64, 4, 4),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(256, width),
        )
        self.token = nn.Embedding(256, width)
        self.text = nn.GRU(width, width, batch_first=True)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """How well each image goes with each text."""
        states, _ = self.text(self.token(tokens.int()))
        # What counts of each row; the rest is padding.
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        texts = (states * inside[:, :, None]).sum(1) / lengths[:, None].clamp(min=1)
        images = nn.functional.normalize(self.image(images), dim=1)
        return 10 * images @ nn.functional.normalize(texts, dim=1).T


torch.manual_seed(1)
model = Clip()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

with Loader(shards, fields=fields, batch_size=32, shuffle=True, drop_last=True, seed=1, label=None) as loader:
    for epoch in range(4):
        total = batches = 0
        for batch in loader:
            tokens = batch.ragged("caption")
            scores = model(batch["image"], tokens.padded, tokens.lengths)
            same = torch.arange(len(scores))
            loss = nn.functional.cross_entropy(scores, same) + nn.functional.cross_entropy(scores.T, same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, batches = total + loss.item() / 2, batches + 1
        print(f"epoch {epoch + 1}: loss {total / batches:.3f}, for example {batch['caption'][0]!r}")
