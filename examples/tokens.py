"""Documents packed into rows of equal length, and a small language model that never looks across their borders.

    .venv/bin/python examples/tokens.py build/text.parquet README.md ARCHITECTURE.md docs/*.md

Each paragraph of the files becomes a document of byte values in a Parquet table; with a tokenizer of your own it
would hold its ids. `mode="pack"` lays all documents end to end and cuts them into rows, so that nothing is
padded: `document` numbers them within a row, and `token_position` counts within each.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuelrail.torch import Loader
from torch import nn

table, files = sys.argv[1], sys.argv[2:]
END = 256  # after every document
LENGTH = 128
paragraphs = [part for file in files for part in Path(file).read_text().split("\n\n") if part.strip()]
documents = pa.array([list(part.encode()) for part in paragraphs], pa.list_(pa.int32()))
pq.write_table(pa.table({"input_ids": documents}), table)


class Model(nn.Module):
    """One layer of attention."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.token = nn.Embedding(END + 1, width)
        self.place = nn.Embedding(4096, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, END + 1)

    def forward(self, tokens: torch.Tensor, document: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Scores of the token that follows each."""
        length = tokens.shape[1]
        # A token sees what comes before it in its own document.
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        sees = causal & (document[:, :, None] == document[:, None, :])
        x = self.token(tokens) + self.place(place.long().clamp(max=4095))
        return self.head(self.block(x, src_mask=~sees.repeat_interleave(4, dim=0)))


torch.manual_seed(1)
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
packed = {"column": "input_ids", "length": LENGTH, "mode": "pack", "eos_id": END}

with Loader(table, tokens=packed, batch_size=16, shuffle=True, seed=1) as loader:
    print(f"{len(paragraphs)} documents in {loader.num_samples} rows of {LENGTH} tokens")
    for epoch in range(3):
        total = batches = 0
        for batch in loader:
            tokens, document = batch["tokens"], batch["document"]
            scores = model(tokens, document, batch["token_position"])[:, :-1]
            # The first token of a document follows from nothing.
            inside = document[:, 1:] == document[:, :-1]
            loss = nn.functional.cross_entropy(scores[inside], tokens[:, 1:][inside])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, batches = total + loss.item(), batches + 1
        print(f"epoch {epoch + 1}: loss {total / batches:.3f} a token")
