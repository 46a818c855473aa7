"""
Which sampling parameters a job may set: the OpenAI names and vLLM's additions to them.
"""

import difflib
from collections.abc import Mapping

from milkrun_engine.domain.errors import InvalidRequest

KNOWN = frozenset(
    "temperature top_p top_k min_p max_tokens max_completion_tokens min_tokens stop stop_token_ids seed n "
    "presence_penalty frequency_penalty repetition_penalty length_penalty logprobs top_logprobs prompt_logprobs "
    "logit_bias allowed_token_ids bad_words ignore_eos include_stop_str_in_output skip_special_tokens "
    "spaces_between_special_tokens truncate_prompt_tokens tools tool_choice parallel_tool_calls response_format "
    "reasoning_effort chat_template_kwargs add_generation_prompt continue_final_message add_special_tokens "
    "dimensions encoding_format suffix echo".split()
)
MAX_CHOICES = 16


def check(sampling: Mapping[str, object]) -> None:
    """
    Refuse a parameter that no model knows, at the door and not in every row.

    Raises:
        InvalidRequest: naming the parameter and the nearest known one.
    """
    for name in sampling:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidRequest(f"sampling has no parameter {name!r}{hint}")
    n = sampling.get("n", 1)
    if not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(f"sampling parameter n must be a whole number from 1 to {MAX_CHOICES}")
