"""A data set prepared with Spark: images and labels become Parquet files, which a model is then trained from.

    .venv/bin/python examples/spark_prepare.py build/demo/digits/train build/digits-parquet

Spark reads the files of a folder, drops those that are too small to be images or occur twice, and writes the rest in
four files, each with rows of all classes. It needs Java 17 or newer, and is done before the training starts.
"""

import sys
from pathlib import Path

import torch
from fuelrail.torch import Loader
from fuelrail.torch import fields as F
from fuelrail.torch import transforms as T
from fuelrail.train import build_model
from pyspark.sql import SparkSession
from pyspark.sql import functions as S

ENDINGS = "*.{jpg,jpeg,png,webp}"


def prepare(folder: Path, out: Path) -> None:
    """Writes the images below a folder of class folders."""
    builder = SparkSession.builder.master("local[2]").appName("prepare").config("spark.ui.enabled", False)
    with builder.getOrCreate() as spark:
        files = spark.read.format("binaryFile").option("recursiveFileLookup", True)
        files = files.option("pathGlobFilter", ENDINGS).load(str(folder))
        # file:/data/train/cat/1.jpg has the class where /data/train ends.
        parts, depth = S.split("path", "/"), len(folder.parts)
        rows = files.select(
            S.array_join(S.slice(parts, depth + 1, 99), "/").alias("name"),
            parts[depth].alias("label"),
            S.col("content").alias("image"),
        )
        rows = rows.where(S.length("image") > 100).dropDuplicates(["image"])
        # By a hash of the name, so that each file has rows of all classes: row groups are read as a whole.
        rows = rows.repartition(4, "name").sortWithinPartitions("name")
        rows.write.mode("overwrite").parquet(str(out))


def train(table: Path) -> None:
    """Trains from what Spark wrote."""
    chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
    fields = {"image": F.Image(chain), "name": F.Text("name", max_bytes=200)}
    with Loader(table, fields=fields, batch_size=16, shuffle=True, seed=1) as loader:
        torch.manual_seed(1)
        model = build_model("small_cnn", len(loader.classes))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for epoch in range(1, 3):
            names = []
            for batch in loader:
                images, labels = batch
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                names += batch["name"]
            print(
                f"epoch {epoch}: {len(set(names))} images of {len(loader.classes)} classes; loss {loss.item():.3f}"
            )


if __name__ == "__main__":
    folder, table = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    prepare(folder, table)
    train(table)
