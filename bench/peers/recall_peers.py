"""implicit's ALS and faiss' flat index: told by a folder of arrays what to do, CPU seconds out.

python recall_peers.py als|search FOLDER writes a line of JSON. One thread, as its caller has.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np


def als(folder: Path) -> dict[str, object]:
    """CPU seconds of the training alone, and the loss that it came to; writes the factors."""
    import scipy.sparse
    from implicit.cpu._als import calculate_loss, least_squares_cg

    given = np.load(folder / "als.npz")
    shape = (len(given["starts"]) - 1, int(given["items"]))
    sure = 1 + given["alpha"] * np.ones(len(given["columns"]), np.float32)
    had = scipy.sparse.csr_matrix((sure, given["columns"], given["starts"]), shape=shape)
    turned = had.T.tocsr()
    random, factors, l2 = np.random.RandomState(0), int(given["factors"]), float(given["l2"])
    users, items = (random.rand(n, factors).astype(np.float32) * 0.01 for n in shape)
    begin = time.process_time()
    for _ in range(int(given["iterations"])):
        least_squares_cg(had, users, items, l2, num_threads=1, cg_steps=3)
        least_squares_cg(turned, items, users, l2, num_threads=1, cg_steps=3)
    seconds = time.process_time() - begin
    np.savez(folder / "factors.npz", users=users, items=items)
    return {"seconds": seconds, "loss": calculate_loss(had, users, items, l2, num_threads=1)}


def search(folder: Path) -> dict[str, object]:
    """CPU seconds of exact search for all queries at once; writes what was found."""
    import faiss

    faiss.omp_set_num_threads(1)
    given = np.load(folder / "search.npz")
    index = faiss.IndexFlatIP(given["items"].shape[1])
    index.add(given["items"])
    k = int(given["k"])
    index.search(given["queries"][:64], k)
    begin = time.process_time()
    _, found = index.search(given["queries"], k)
    seconds = time.process_time() - begin
    np.save(folder / "found.npy", found)
    return {"seconds": seconds}


if __name__ == "__main__":
    print(json.dumps({"als": als, "search": search}[sys.argv[1]](Path(sys.argv[2]))))
