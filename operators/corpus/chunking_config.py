"""How a job's documents are cut: the `chunking` section of its config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.errors import InputError

MIN_CHUNK_TOKENS = 8
# Overlap of windows where none is set: a quarter of what the model reads, but no more than this many tokens (of windows
# of 8,192 it is what late chunking was published with)
WINDOW_OVERLAP_SHARE, MAX_WINDOW_OVERLAP = 4, 512

# Part of every dataset's fingerprint: raise it when a change moves a chunk's ends, or a window's
CHUNKER_VERSION = 1


class Chunking(BaseModel):
    """How documents are cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int | None = Field(
        default=None,
        description="most tokens of a chunk, without the model's special tokens and prompt; null = one chunk a "
        "document, cut off at what the model reads",
    )
    overlap: int = Field(
        default=0, description="tokens that a chunk repeats of the one before it, about; needs chunking.tokens"
    )
    late: bool = Field(
        default=False,
        description="embed whole documents and average each chunk's tokens afterwards, so that a chunk's vector knows "
        "what stands around it (late chunking, arXiv 2409.04701); needs chunking.tokens and a model with mean pooling",
    )
    window_overlap: int | None = Field(
        default=None,
        description="with chunking.late: tokens that two windows share of a document longer than the model reads; "
        "null = a quarter of a window, at most 512",
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Chunking:
        if self.tokens is not None and self.tokens < MIN_CHUNK_TOKENS:
            raise ValueError(
                f"set chunking.tokens to {MIN_CHUNK_TOKENS} or more, or to null for one chunk a document; "
                f"got {self.tokens}"
            )
        if self.overlap < 0:
            raise ValueError(f"set chunking.overlap to 0 or more, got {self.overlap}")
        if self.overlap and self.tokens is None:
            raise ValueError(f"set chunking.tokens too, or chunking.overlap to 0; got tokens null, {self.overlap=}")
        if self.tokens is not None and self.overlap >= self.tokens:
            raise ValueError(
                f"set chunking.overlap below chunking.tokens ({self.tokens}; a tenth of it is usual), "
                f"got {self.overlap}"
            )
        return self

    @model_validator(mode="after")
    def _late_fits(self) -> Chunking:
        if self.late and self.tokens is None:
            raise ValueError("set chunking.tokens too, or chunking.late to false: it says how long a late chunk is")
        if self.window_overlap is not None and not self.late:
            raise ValueError("set chunking.late to true, or leave chunking.window_overlap out: only it has windows")
        if self.window_overlap is not None and self.window_overlap < 0:
            raise ValueError(f"set chunking.window_overlap to 0 or more, got {self.window_overlap}")
        return self

    def window_overlap_of(self, max_text_tokens: int) -> int:
        """Tokens that two windows of `max_text_tokens` share."""
        if self.window_overlap is not None:
            return self.window_overlap
        return min(MAX_WINDOW_OVERLAP, max_text_tokens // WINDOW_OVERLAP_SHARE)


def check_fits(chunking: Chunking, max_text_tokens: int) -> None:
    """Refuse chunks and overlaps too long for the model (`max_text_tokens`: its limit less special tokens and prompt).

    Windows that share more than half of themselves would compute every token twice and more.
    """
    if chunking.tokens is not None and chunking.tokens > max_text_tokens:
        raise InputError(
            f"set chunking.tokens to {max_text_tokens} or less: the model reads {max_text_tokens} tokens of text "
            f"(special tokens and prompt not counted), so chunks of {chunking.tokens} would be cut off"
        )
    if chunking.window_overlap is not None and chunking.window_overlap > max_text_tokens // 2:
        raise InputError(
            f"set chunking.window_overlap to {max_text_tokens // 2} or less: a window has {max_text_tokens} tokens of "
            f"text, got {chunking.window_overlap}"
        )
