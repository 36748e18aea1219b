"""What a model takes for alike: nearest codes, and a map of all of them, with titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.utils.validation import check_is_fitted

from medbert.commands.convert import MIN_COUNT
from medbert.data.titles import look_up
from medbert.data.vocabulary import Vocabulary
from medbert.evaluate.figures import shown
from medbert.evaluate.figures.attribution import chapter, code_map
from medbert.library.encoder import Encoder
from medbert.library.estimators import MedBertClassifier
from medbert.schema import CODE, SPECIAL_TOKENS, InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Model: TypeAlias = Encoder | MedBertClassifier
TITLE = "title"


def nearest_codes(
    model: Model, code: str, *, n: int = 10, min_count: int = MIN_COUNT
) -> pd.DataFrame:
    """The ``n`` codes whose embeddings point most nearly where that of ``code`` does.

    Columns code, title, similarity (cosine), subjects (of the training records, rounded down to
    tens; 0 where none were counted). Codes of fewer than ``min_count`` subjects are left out.
    """
    table, vectors = _table(model, min_count)
    place = table.index[table[CODE] == code]
    if not len(place):
        below = [c for c in table[CODE] if c.startswith(code)][:5]
        cure = f"there is {', '.join(below)}" if below else "codes are written as in ICD10CM/I50.9"
        raise InputError(f"code={code}: the model has none, or a rare one; {cure}")
    table.insert(2, "similarity", (vectors @ vectors[place[0]]).astype(np.float64))
    return table.drop(place).nlargest(n, "similarity").reset_index(drop=True)


def plot_codes(
    model: Model, *, method: str = "pca", min_count: int = MIN_COUNT, ax: Axes | None = None
) -> Axes:
    """The code table in two dimensions, by chapter of ICD; the commonest codes have their names.

    ``method``: ``pca``, the two directions in which codes differ most, or ``tsne``, where only
    neighbours mean something. Codes of fewer than ``min_count`` training subjects are left out.
    """
    table, vectors = _table(model, min_count)
    near = min(30.0, (len(table) - 1) / 3)
    tsne = TSNE(2, perplexity=near, metric="cosine", random_state=0)
    methods = {"pca": PCA(2, random_state=0), "tsne": tsne}
    if method not in methods or len(table) < 3:
        raise InputError(f"method={method} of {len(table)} codes: say pca or tsne, of 3 or more")
    place, groups = methods[method].fit_transform(vectors), [chapter(code) for code in table[CODE]]
    with shown():
        return code_map(place, groups=groups, names=[*table[TITLE]], axes=ax)


def encoder_of(model: Model) -> Encoder:
    """The encoder that a classifier was fitted with, or has fine-tuned."""
    if isinstance(model, Encoder):
        return model
    check_is_fitted(model)
    opened = model._open()
    longest = {"max_tokens": model._longest(opened)}
    network = model.network_ or opened.model
    return Encoder(network, opened.records.vocabulary, settings=longest)


def titles(codes: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Of the vocabulary, else of the official lists where they are installed, else the code."""
    known = dict(zip(vocabulary.codes, vocabulary.titles, strict=True))
    without = [c for c in set(codes) if not known.get(c) and c.startswith(("ICD9CM/", "ICD10CM/"))]
    try:
        found = look_up(without) if without else {}
    except InputError:
        found = {}
    return [known.get(code) or found.get(code) or code for code in codes]


def _table(model: Model, min_count: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Code, title and subjects, the commonest first, and the embeddings, of length 1."""
    encoder = encoder_of(model)
    words, weight = encoder.vocabulary, encoder.module.codes.weight.detach().float().cpu()
    least = min_count if words.n_subjects.any() else 0  # else nothing was counted
    order = np.argsort(-words.n_subjects, kind="stable")
    order = order[(order >= len(SPECIAL_TOKENS)) & (words.n_subjects[order] >= least)]
    codes, subjects = words.decode(order.tolist()), words.n_subjects[order] // 10 * 10
    table = pd.DataFrame({CODE: codes, TITLE: titles(codes, words), "subjects": subjects})
    return table, F.normalize(weight[order.copy()], dim=1).numpy()
