"""The commands of rag-finetune, a module each."""
