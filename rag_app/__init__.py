"""A question in, a cited answer out.

>>> from rag_app.bot import Bot
>>> from rag_app.engines.llama import LlamaCpp
>>> answer = Bot(LlamaCpp()).ask("What is LoRA?")
"""
