"""
The task of the main job, shared by the batch job and the hand-written loop: rows, labels, chat.
"""

import csv
from pathlib import Path

LABELS = ["positive", "negative", "neutral"]

# A model as small as the default one follows what it seems to have answered before far better than instructions:
# of eight kinds of prompt, turns like these agreed with the labels most often.
EXAMPLES = [
    ("Works perfectly, I use it every day.", "positive"),
    ("Broke after two days and nobody answers my emails.", "negative"),
    ("It is okay. Some things are good, some are not.", "neutral"),
    ("Terrible smell, sent it back.", "negative"),
    ("My daughter loves it. Thank you!", "positive"),
    ("It has two buttons and a cable of one metre.", "neutral"),
]


def messages(text: str) -> list[dict[str, str]]:
    """Return the chat that asks for the label of a review."""
    turns = [
        {"role": role, "content": content}
        for example in EXAMPLES
        for role, content in zip(("user", "assistant"), example, strict=True)
    ]
    return [*turns, {"role": "user", "content": text}]


def read_reviews() -> list[dict[str, str]]:
    """Read the reviews: id, product, text, and the true label."""
    path = Path(__file__).parent / "reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
