"""What the web page says, in English and in Chinese, and the files it is made of.

Not here: what Gradio's own buttons say; they follow the browser's language.
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
    "ask": "Ask something",
    "hello": "Ask something. Conversations are kept in this browser only.",
    "retry": "Try again",
    "settings": "Settings",
    "system": "System prompt",
    "system_info": "What the model is told before this conversation.",
    "temperature": "Temperature",
    "temperature_info": "0 always takes the likeliest token.",
    "top_k": "Top k",
    "top_k_info": "0 is off.",
    "top_p": "Top p",
    "min_p": "Min p",
    "repetition_penalty": "Repetition penalty",
    "max_tokens": "Longest answer, tokens",
    "seed": "Seed",
    "seed_info": "Empty: every answer differs.",
    "first_token": "first token {0} s",
    "rate": "{0} tokens/s",
    "tokens": "{0} tokens",
    "waiting": "waiting for the first token …",
    "cancelled": "stopped",
    "length": "cut at the longest answer or the end of the context",
    "dropped": "without the {0} oldest rounds, for want of context",
    "error": "Error: {0}",
    "lost": "the connection to the server is lost; try again",
    "full": "this browser keeps no more conversations; delete some",
    "key": "Key",
    "wrong_key": "This key is wrong.",
    "open": "Open",
}

_CHINESE = {
    "switch": "English",
    "theme": "浅色 / 深色",
    "new": "新对话",
    "delete": "删除",
    "confirm": "删除这个对话？",
    "untitled": "空对话",
    "ask": "请输入问题",
    "hello": "请输入问题。对话只保存在本浏览器中。",
    "retry": "重新回答",
    "settings": "设置",
    "system": "系统提示词",
    "system_info": "对话开始之前告诉模型的话。",
    "temperature": "温度",
    "temperature_info": "0 表示总是选择概率最大的词元。",
    "top_k": "Top k",
    "top_k_info": "0 表示不限制。",
    "top_p": "Top p",
    "min_p": "Min p",
    "repetition_penalty": "重复惩罚",
    "max_tokens": "回答的最大词元数",
    "seed": "随机种子",
    "seed_info": "留空则每次回答都不同。",
    "first_token": "首个词元 {0} 秒",
    "rate": "每秒 {0} 个词元",
    "tokens": "共 {0} 个词元",
    "waiting": "正在等待首个词元……",
    "cancelled": "已停止",
    "length": "已达到回答或上下文的最大长度",
    "dropped": "上下文不足，略去了最早的 {0} 轮对话",
    "error": "错误：{0}",
    "lost": "与服务器的连接已断开，请重试",
    "full": "本浏览器无法保存更多对话，请删除一些",
    "key": "密钥",
    "wrong_key": "密钥错误。",
    "open": "打开",
}

TEXTS: dict[Language, dict[str, str]] = {"en": _ENGLISH, "zh": _CHINESE}
"""Each text by its name; ``{0}`` is a value."""


def choose_language(accepted: str) -> Language:
    """Return the one a browser's ``Accept-Language`` names first, which browsers sort; English for others."""
    for name in accepted.lower().replace(" ", "").split(","):
        if name.startswith("zh"):
            return "zh"
        if name.startswith("en"):
            return "en"
    return "en"


def read_part(name: str) -> str:
    """Return a text file beside this module."""
    return files("baichuan2_tpu.server.page").joinpath(name).read_text("utf-8")
