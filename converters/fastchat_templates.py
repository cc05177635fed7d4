"""The templates of fastchat.conversation, by their names."""

from collections.abc import Sequence

from twintune.converters.conversation import Message
from twintune.converters.skeletons import Renderer


class FastChatRenderer(Renderer):
    """A template of FastChat; the tokenizer adds its own special tokens around the text."""

    add_special_tokens = True

    def __init__(self, name: str) -> None:
        self.name = name

    def render(self, messages: Sequence[Message], answer_next: bool) -> str:
        """See Renderer."""
        from fastchat.conversation import get_conv_template

        chat = get_conv_template(self.name)
        if messages and messages[0].role == "system":
            chat.set_system_message(messages[0].text)
            messages = messages[1:]
        human, assistant = chat.roles[:2]  # one template names a third, the system
        for message in messages:
            chat.append_message(human if message.role == "human" else assistant, message.text)
        if answer_next:
            chat.append_message(assistant, None)
        try:
            text: str = chat.get_prompt()
        except ValueError:
            # FastChat also names services (chatgpt, bard), which take messages and no text.
            raise self.unfit("must write a conversation as text, got the name of a service") from None
        return text


def fastchat_names() -> list[str]:
    """The names FastChat has templates for."""
    from fastchat.conversation import conv_templates

    return list(conv_templates)
