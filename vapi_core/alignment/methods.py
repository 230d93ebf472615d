"""All alignment methods by the names they have in params.yaml."""

from vapi_core.alignment import ar_grpo, cross_entropy, straight_through, tokenizer_post_training, va_pi
from vapi_core.alignment.method import Method

METHODS: dict[str, Method] = {
    "va-pi": va_pi.METHOD,
    "cross-entropy": cross_entropy.METHOD,
    "ste": straight_through.METHOD,
    "tokenizer-post-training": tokenizer_post_training.METHOD,
    "ar-grpo": ar_grpo.METHOD,
}
