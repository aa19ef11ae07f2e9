"""A trained model or adapter in the form that it is served in, each proven before it counts. Trains nothing.

export.py        what the command does: written aside, proven, published
wanted.py        what is asked for
origin.py        what it is made of: a run, an adapter, a model; and that in memory
places.py        where it goes, whether there is room, how it gets there
proof.py         the same tokens, template and logits as the source, or no file; limits by type
engines.py       tokens, logits and replies of the engines that will serve it
gguf.py          a model as a GGUF file: families (what llama.cpp is told of each), vocabulary (its tokens)
quantise.py      a GGUF file in another type; imatrix: by the columns that texts use
lora.py          an adapter alone, for llama.cpp
merged.py        an adapter folded into 16-bit weights
gptq.py          4 and 8 bits for GPUs; calibration: texts to round by
converter.py     llama.cpp's own converter, for other families
"""
