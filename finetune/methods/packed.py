"""Keeps packed 4-bit weights fit for training on a CPU. Knows no method."""

from typing import Any


def keep(model: Any) -> None:
    """Has layers of bitsandbytes stay in the layout that gradients pass through.

    On a processor with AVX512-BF16 such a layer lays its weights out anew when it is first used outside of training,
    and stays so: of what is trained afterwards it passes no gradient, without an error, and PEFT's DoRA reads it wrong.
    What was used already is laid back, but its scales have lost digits (gradients differ by 4%): call this first.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                _lay_back(module)


def _lay_back(module: Any) -> None:
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    weight = module.weight
    weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
    module.quant_state = weight.quant_state
