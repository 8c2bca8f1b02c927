"""Memory of the engine in a process of its own: ``python -m backend.bench.memory BASE_FOLDER ADAPTER_FOLDER...``, JSON out."""

import json
import resource
import sys
from pathlib import Path

import psutil

from backend.generation.decoder import DecoderRow, decode
from backend.generation.fast import FastDecoder
from backend.models.adapters import load_adapter


def main() -> None:
    process = psutil.Process()
    imports = process.memory_info().rss
    folder, *places = map(Path, sys.argv[1:])
    decoder = FastDecoder.load(folder, stop_ids=frozenset(), context_length=2048)
    adapters = [decoder.prepare(load_adapter(place)) for place in places]
    resident = process.memory_info().rss
    decode(decoder, [DecoderRow(ids=tuple(range(100, 160)), adapter=adapters[i % len(adapters)], max_new_tokens=32) for i in range(8)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"imports_bytes": imports, "resident_bytes": resident, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
