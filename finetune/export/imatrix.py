"""How much each column of a model's matrices matters, by the inputs that texts bring it. Knows no types of weights.

A quantised weight's error counts in the output as often as its input is large: llama.cpp weighs the errors of a column
with the mean of its squared inputs, its "importance matrix".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ExportInvalid
from finetune.export.gguf import names, staged
from index.embedding import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

SUMS, COUNTS = ".in_sum2", ".counts"
"""What llama.cpp's own files of this kind call the two tensors of a matrix."""


def measure(
    model: Any, rows: Sequence[Sequence[int]], progress: Progress | None = None
) -> "dict[str, npt.NDArray[np.float32]]":
    """Mean squared input of each column, (inputs,) float32, of each matrix by its name in a GGUF file.

    Args:
        model: that will be written, in the precision that it runs fast in.
        rows: texts in tokens, such as prompts with their answers. A thousand tokens are enough: on the bundled model's
            Q4_K_M they take the divergence from f16 from 0.064 to 0.039 nats, and so do eight thousand.
        progress: called with ("weighing", rows done, all).

    Raises:
        ExportInvalid: the model is of no family that can be written, or there is no row.
    """
    import torch

    from finetune.evaluation.perplexity import evaluating

    known, head = names(model), model.get_output_embeddings()
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(_adding(found, known[f"{name}.weight"]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    # the head alone is not run: it is large, and what comes in is the model's output; tied, it is the embeddings
    last = _adding(found, known.get("lm_head.weight", "token_embd.weight"))
    try:
        with evaluating(model):
            for done, row in enumerate(rows, 1):
                hidden = model.model(input_ids=torch.tensor([row], device=model.device), use_cache=False)
                last(head, (hidden.last_hidden_state,))
                if progress:
                    progress("weighing", done, len(rows))
    finally:
        for hook in hooks:
            hook.remove()
    if not (count := sum(map(len, rows))):
        raise ExportInvalid("there is no text to weigh the weights by: give training data, or leave it out")
    return {name: (total / count).float().cpu().numpy() for name, total in found.items()}


def _adding(found: "dict[str, Tensor]", name: str) -> Any:
    def add(module: Any, inputs: "tuple[Tensor, ...]") -> None:
        squares = inputs[0].float().square().flatten(0, -2).sum(0).double()
        found[name] = found[name] + squares if name in found else squares

    return add


def save(matrix: "Mapping[str, npt.NDArray[np.float32]]", file: Path) -> None:
    """Writes it as llama.cpp's own programs do and read it, whole or not at all."""
    import numpy as np
    from gguf import GGUFWriter

    with staged(file) as part:
        writer = GGUFWriter(part, "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["training data"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 1)
        for name, values in matrix.items():
            writer.add_tensor(name + SUMS, np.ascontiguousarray(values, np.float32)[None])
            writer.add_tensor(name + COUNTS, np.ones((1, 1), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def load(file: Path) -> "dict[str, npt.NDArray[np.float32]]":
    """What `save` or llama.cpp's own program wrote."""
    from gguf import GGUFReader

    found = {tensor.name: tensor.data.ravel() for tensor in GGUFReader(file).tensors}
    return {
        name.removesuffix(SUMS): values / found[name.removesuffix(SUMS) + COUNTS][0]
        for name, values in found.items()
        if name.endswith(SUMS)
    }
