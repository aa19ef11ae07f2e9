"""An opened index as a LangChain retriever."""

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from index.engine import Index


class IndexRetriever(BaseRetriever):
    """Passages as LangChain documents: the text as `page_content`, the rest of the hit as `metadata`."""

    index: Index
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `Index.search`."""
    model_config = ConfigDict(arbitrary_types_allowed=True)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        documents = []
        for hit in self.index.search(query, **self.settings):
            metadata = hit.as_dict()
            documents.append(Document(page_content=metadata.pop("text"), metadata=metadata, id=hit.chunk_id))
        return documents
