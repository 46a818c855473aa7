"""
The task of the main job, the same on every route and in the hand-written loop: rows, labels, chat.
"""

import csv
from pathlib import Path
from typing import Any

LABELS = ["positive", "negative", "neutral"]
SAMPLING = {"temperature": 0}
TOO_LONG = "R-LONG"

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


def with_one_too_long(reviews: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put one row in their midst that no context can hold: a whole export, pasted into one cell by mistake."""
    everything = "\n".join(review["text"] for review in reviews)
    pasted = {"id": TOO_LONG, "product": "", "text": f"{everything}\n{everything}", "label": ""}
    middle = len(reviews) // 2
    return [*reviews[:middle], pasted, *reviews[middle:]]


def read_rows() -> list[dict[str, Any]]:
    """Return what goes to the model: a key and a chat for each review, one of them far too long."""
    return [{"id": each["id"], "messages": messages(each["text"])} for each in with_one_too_long(read_reviews())]
