"""What a vocabulary must hold beside what it learns, in numbers: for the tokenizer, and for whoever plans one."""

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
)
PADDED_TO = 64  # matmuls like a vocabulary that is a multiple of this


def padded(size: int) -> int:
    return -(-size // PADDED_TO) * PADDED_TO


SMALLEST_VOCABULARY = padded(256 + len(SPECIAL_TOKENS))  # every byte and the special tokens


def too_small(vocab_size: int) -> str:
    """What is said of a `vocab_size` below the smallest."""
    return (
        f"vocab_size = {vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
        f"need at least {SMALLEST_VOCABULARY}"
    )
