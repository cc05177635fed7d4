"""Whether a text fits the positions of a model."""

from twintune.errors import UserError


def require_room(prompt: int, new: int, positions: int) -> None:
    """Refuse a prompt of so many tokens whose new ones go beyond the model's positions.

    Raises:
        UserError: naming all three numbers.
    """
    if prompt + new > positions:
        raise UserError(
            f"generate.max_new_tokens and the prompt must fit the model's {positions} positions, "
            f"got {prompt} prompt tokens and {new} new ones; shorten one of them"
        )
