"""The texts of the web page, in English and Chinese, and the files it is made of.

Not here: the texts of Gradio's own buttons, which follow the browser's language.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

__all__ = ["TEXTS", "Language", "choose_language", "read_part"]

Language = Literal["en", "zh"]

_ENGLISH = {
    "switch": "中文",
    "theme": "Light / dark",
    "new": "New conversation",
    "delete": "Delete",
    "confirm": "Delete this conversation?",
    "untitled": "Empty conversation",
    "ask": "Ask a question",
    "hello": "Ask a question. Conversations are stored only in this browser.",
    "retry": "Try again",
    "settings": "Settings",
    "system": "System prompt",
    "system_info": "Instructions for the model at the start of this conversation.",
    "temperature": "Temperature",
    "temperature_info": "0 always picks the most likely token.",
    "top_k": "Top k",
    "top_k_info": "0 means no limit.",
    "top_p": "Top p",
    "min_p": "Min p",
    "repetition_penalty": "Repetition penalty",
    "max_tokens": "Maximum answer length (tokens)",
    "seed": "Seed",
    "seed_info": "If empty, every answer differs.",
    "first_token": "first token {0} s",
    "rate": "{0} tokens/s",
    "tokens": "{0} tokens",
    "waiting": "waiting for the first token …",
    "reading": "reading {0} %",
    "cancelled": "stopped",
    "length": "cut off at the maximum length or the end of the context",
    "dropped": "the {0} oldest rounds were left out because the context is full",
    "error": "Error: {0}",
    "error_context_length_exceeded": "The question and the system prompt are too long; shorten them.",
    "error_queue_full": "Too many questions are being answered; try again in a moment.",
    "error_unavailable": "The server had no time for this answer; try again later, or ask for a shorter one.",
    "error_engine_failed": "The model failed; try again. If it happens again, tell whoever runs this server.",
    "error_internal_error": "The server failed; try again. If it happens again, tell whoever runs it.",
    "lost": "the connection to the server was lost; try again",
    "full": "this browser cannot store more conversations; delete some",
    "key": "API key",
    "wrong_key": "The API key is incorrect.",
    "open": "Sign in",
}

_CHINESE = {
    "switch": "English",
    "theme": "浅色 / 深色",
    "new": "新对话",
    "delete": "删除",
    "confirm": "删除此对话？",
    "untitled": "空对话",
    "ask": "请输入问题",
    "hello": "请输入问题。对话仅保存在本浏览器中。",
    "retry": "重新回答",
    "settings": "设置",
    "system": "系统提示词",
    "system_info": "对话开始前给模型的指令。",
    "temperature": "温度",
    "temperature_info": "设为 0 时始终选择概率最高的 token。",
    "top_k": "Top k",
    "top_k_info": "设为 0 时不限制。",
    "top_p": "Top p",
    "min_p": "Min p",
    "repetition_penalty": "重复惩罚",
    "max_tokens": "回答的最大长度（token）",
    "seed": "随机种子",
    "seed_info": "留空则每次的回答都不同。",
    "first_token": "首 token {0} 秒",
    "rate": "{0} tokens/s",
    "tokens": "共 {0} tokens",
    "waiting": "正在等待首个 token……",
    "reading": "正在读取 {0} %",
    "cancelled": "已停止",
    "length": "已达到回答的最大长度或上下文上限，内容被截断",
    "dropped": "上下文已满，已省略最早的 {0} 轮对话",
    "error": "错误：{0}",
    "error_context_length_exceeded": "问题和系统提示词超出了模型的长度上限，请缩短后重试。",
    "error_queue_full": "当前请求过多，请稍后重试。",
    "error_unavailable": "服务器未能及时完成回答，请稍后重试，或要求更短的回答。",
    "error_engine_failed": "模型运行出错，请重试；如果问题再次出现，请联系服务器的管理员。",
    "error_internal_error": "服务器出错，请重试；如果问题再次出现，请联系服务器的管理员。",
    "lost": "与服务器的连接已断开，请重试",
    "full": "浏览器存储空间已满，请删除部分对话",
    "key": "API Key",
    "wrong_key": "API Key 不正确。",
    "open": "登录",
}

TEXTS: dict[Language, dict[str, str]] = {"en": _ENGLISH, "zh": _CHINESE}
"""Each text by its name; ``{0}`` is replaced by a value. "error_" and the code of an error is what to do."""


def choose_language(accepted: str) -> Language:
    """Return the first known language of ``Accept-Language``, which browsers sort; English if none is."""
    for name in accepted.lower().replace(" ", "").split(","):
        if name.startswith("zh"):
            return "zh"
        if name.startswith("en"):
            return "en"
    return "en"


def read_part(name: str) -> str:
    """Return a text file beside this module."""
    return files("baichuan2_tpu.server.page").joinpath(name).read_text("utf-8")
