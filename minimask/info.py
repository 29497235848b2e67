"""``minimask info``: what a report of a problem should begin with."""

from importlib import metadata

from minimask import backend

PACKAGES = ("pillow", "matplotlib", "pycocotools", "tqdm", "threadpoolctl")


def report() -> str:
    """Versions, BLAS and its threads, processor, and the GPU or why none, a line each."""
    from threadpoolctl import threadpool_info

    facts = backend.describe()
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    pools = [f"{pool['internal_api']}: {pool['num_threads']}" for pool in threadpool_info()]
    facts["blas_threads"] = ", ".join(pools) or "unknown"
    return "\n".join(f"{name.replace('_', ' '):<14} {value}" for name, value in facts.items())
