"""``/v1/responses``, OpenAI's newer interface, over the conversation code of chats.

Not here: what messages, tools and schemas mean (``api.chat_input``), sending events (``api.event_stream``).
"""
