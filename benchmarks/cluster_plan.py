"""What describing and indexing a very large number of photos takes, computed from measured rates.

    python -m benchmarks.cluster_plan
    python -m benchmarks.cluster_plan --machines 30 --cores 16 --photo_kb 110 --photos 10e6,100e6,1e9

Core hours, hours on so many machines, bytes, and where each stage has its narrowest place. Nothing of it was run at
that size: rates are those of `MEASURED`, which two cores gave, and of the planner of `mg-keras index --plan`.
"""

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import print_table
from mg_keras.programs.common import list_of, number, run_program
from mg_keras.search import planning

# describe: processor seconds a photo of `mg-keras embed`, 2 000 photos less 64, 224 px, float32, the package's model
# row, row_bytes: processor seconds and bytes of a row of 512 values that the command writes as Parquet
# listed, listed_bytes: seconds and bytes of memory a photo, of a frozen list (docs/clusters.md)
# pushed: photos a second of one `mg-keras push` into milvus-lite (docs/clusters.md)
MEASURED = {
    "describe": 0.0181,
    "row": 4.0e-5,
    "row_bytes": 1077,
    "listed": 7e-6,
    "listed_bytes": 60,
    "pushed": 4700,
}
LARGEST_INDEX = 62_500_000
"""Descriptors of one index: beyond, several are asked side by side, since codes tell neighbours apart ever less."""


def plan(photos: float, machines: int, cores: int, photo_kb: float, dimensions: int = 512) -> dict[str, float]:
    """The figures of one size, by name.

    Args:
        photos: how many.
        machines, cores: machines, and cores of each.
        photo_kb: kilobytes of a photo on average.
        dimensions: D of a descriptor.
    """
    describe = photos * MEASURED["describe"]
    rate = machines * cores / MEASURED["describe"]
    indexes = max(1, round(photos / LARGEST_INDEX))
    # float16 in memory, codes of an eighth of a byte a value, and of a sixteenth
    index = planning.choices(int(photos / indexes), dimensions, cores)[1]
    return {
        "photos": photos,
        "list, GB": photos * MEASURED["listed_bytes"] / 1e9,
        "list, minutes": photos * MEASURED["listed"] / 60,
        "photos, TB": photos * photo_kb / 1e9,
        "describing, core hours": describe / 3600,
        "describing, hours": describe / 3600 / machines / cores,
        "read, Gbit/s a machine": rate / machines * photo_kb * 8e3 / 1e9,
        "of one writer's time, %": 100 * rate * MEASURED["row"],
        "descriptors, GB": photos * MEASURED["row_bytes"] / 1e9,
        "indexes": indexes,
        "indexing, core hours": indexes * index.core_seconds / 3600,
        "an index, hours": index.seconds / 3600,
        "an index, GB of memory": index.memory / 1e9,
        "an index, GB to build with": index.building / 1e9,
        "recall@10": index.recall,
        "a query, ms of a core": 1e3 * index.query_seconds * indexes,
        "pushing, hours of one command": photos / MEASURED["pushed"] / 3600,
    }


def main() -> None:
    """Arguments and the table."""
    parser = benchmark_parser("cluster_plan", __doc__)
    at_least_one = number(int, at_least=1)
    parser.add_argument("--photos", type=list_of(float, at_least=1e6), default=[10e6, 100e6, 1e9])
    parser.add_argument("--machines", type=at_least_one, default=30)
    parser.add_argument("--cores", type=at_least_one, default=16, help="of each machine")
    parser.add_argument("--photo_kb", type=number(float, above=0), default=110.0, help="kilobytes of a photo")
    options = parser.parse_args()
    plans = [plan(count, options.machines, options.cores, options.photo_kb) for count in options.photos]
    print_table(
        f"{options.machines} machines of {options.cores} cores; computed, not run",
        ["", *(f"{count:,.0f}" for count in options.photos)],
        [[name, *(f"{found[name]:,.3g}" for found in plans)] for name in plans[0] if name != "photos"],
    )


if __name__ == "__main__":
    run_program(main)
