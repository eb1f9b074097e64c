"""Folders of Parquet as mg-keras embed writes them, of generated descriptors."""

import numpy as np

from mg_keras.embedding import shards


def write_folder(folder, values, a_shard=700, unusable=(), dtype="float16", made_from=None, first=0):
    """`values` [N, D] as shards; photos are called `a/00000.jpg` and so on, those of `unusable` have an error."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = shards.schema(values.shape[1], dtype, made_from or {"network": "one", "resolution": 64})
    bad = np.isin(np.arange(len(values)), list(unusable))
    for start in range(0, len(values), a_shard):
        ids = np.arange(start, min(start + a_shard, len(values)))
        good, broken = ids[~bad[ids]], ids[bad[ids]]
        rows = [
            shards.usable_rows(columns, first + good, [f"a/{first + row:05}.jpg" for row in good], values[good]),
            shards.unusable_rows(
                columns, first + broken, [f"a/{first + row:05}.jpg" for row in broken], ["broken"] * len(broken)
            ),
        ]
        shards.write(folder, shards.pa.concat_tables([table for table in rows if len(table)]))
    return folder
