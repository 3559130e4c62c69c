"""From text to token ids and back: tokenizers, chat templates, decoding of a stream of tokens.

Not here: choosing tokens (``generate``), keeping a conversation (``chat``).
"""
