"""Language models behind `Generator`: llama.cpp, Transformers, servers, any LangChain chat model."""
