"""Pictures and texts to embeddings: one road for training time and inference time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from entrep.artifacts import load_arrays, save_arrays, sha256_json
from entrep.encoders import Encoder
from entrep.preprocess import as_batch, prepare_pictures

PREPARED_AT_ONCE = 64  # pictures decoded in parallel and held before they are embedded


def embed_pictures(
    encoder: Encoder, root: str | Path, paths: Sequence[str], *, batch_size: int = 32
) -> np.ndarray:
    """Embed pictures in the order given.

    Args:
        encoder: from `load_encoder`.
        root: folder that `paths` are relative to.
        paths: N POSIX paths.
        batch_size: pictures a forward pass. It does not change what is decided later:
            embeddings differ in their last bits at most, and scores are rounded.

    Returns:
        (N, D) float32, unit L2 norm per row.
    """
    rows = []
    # Prepared in slices, so that memory does not grow with the number of pictures.
    step = batch_size * -(-PREPARED_AT_ONCE // batch_size)
    with tqdm(total=len(paths), desc=f"embed ({encoder.spec.name})", unit="picture") as bar:
        for start in range(0, len(paths), step):
            part = paths[start : start + step]
            prepared = prepare_pictures(root, part, encoder.spec.image_size, progress=False)
            for batch in as_batch(prepared).split(batch_size):
                rows.append(encoder.encode_pictures(batch).numpy())
                bar.update(len(batch))
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def embed_texts(encoder: Encoder, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
    """Embed texts with a joint encoder: (T, D) float32, unit L2 norm per row."""
    parts = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
    return np.concatenate([encoder.encode_texts(part).numpy() for part in parts])


def load_or_embed(
    file: str | Path,
    encoder: Encoder,
    root: str | Path,
    paths: Sequence[str],
    sha256: Sequence[str],
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """`embed_pictures`, kept in `file` and read back when encoder and pictures are the same.

    Args:
        file: safetensors file with the tensor "embeddings" (N, D).
        encoder: from `load_encoder`.
        root: folder that `paths` are relative to.
        paths: N POSIX paths.
        sha256: N digests of the pictures' bytes, in the same order.
        batch_size: pictures a forward pass.
    """
    key = sha256_json([weights_digest(encoder), list(sha256)])
    if Path(file).is_file():
        arrays, metadata = load_arrays(file)
        if metadata.get("key") == key:
            return arrays["embeddings"]
    embeddings = embed_pictures(encoder, root, paths, batch_size=batch_size)
    save_arrays(file, {"embeddings": embeddings}, {"key": key, "encoder": encoder.spec.name})
    return embeddings


def weights_digest(encoder: Encoder) -> str:
    """SHA-256 of what an embedding depends on beside the picture: weights and preprocessing."""
    digest = hashlib.sha256(
        sha256_json([vars(encoder.spec), encoder.mean, encoder.std]).encode("ascii")
    )
    for name, tensor in encoder.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()))
    return digest.hexdigest()
