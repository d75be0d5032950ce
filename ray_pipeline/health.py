"""Whether an image or environment is whole: every heavy package is imported and named with its version.

python -m ray_pipeline.health
"""

import importlib
from collections.abc import Iterator
from importlib.metadata import version

PACKAGES = {
    "ray.data": "ray", "ray.train.torch": "ray", "torch": "torch", "transformers": "transformers", "peft": "peft",
    "accelerate": "accelerate", "bitsandbytes": "bitsandbytes", "deepspeed": "deepspeed",
    "sentence_transformers": "sentence-transformers", "faiss": "", "google.genai": "google-genai",
    "pyarrow": "pyarrow", "s3fs": "s3fs", "lingua": "lingua-language-detector", "sklearn": "scikit-learn",
    "ray_pipeline.pipeline": "ray-pipeline",
}  # fmt: skip
"""Modules, and the distributions that they come from; faiss has several."""


def imported() -> Iterator[str]:
    """Import module by module and tell each; raises ImportError, or OSError for a library of the system."""
    for module, package in PACKAGES.items():
        found = importlib.import_module(module)
        yield f"{module} {version(package) if package else found.__version__}"


if __name__ == "__main__":
    for line in imported():
        print(line)
