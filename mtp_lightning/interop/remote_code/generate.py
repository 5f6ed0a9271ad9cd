# mypy: ignore-errors
"""Self-speculative decoding (arXiv 2404.19737, section 3.2) for `model.generate(..., custom_generate=FOLDER)`.

Heads 2 .. k guess the tokens after the next one, and the next forward verifies the guesses while it computes the next
token, so that a forward makes 1 to k tokens certain. The text is that of plain decoding: a guess is kept only where it
is what the model itself, head 1, says.
"""

import torch
from transformers import DynamicCache
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMixin


def generate(inputs=None, *, model, **arguments):
    """`generate` as ever, one text at a time, greedy or sampling; `heads_used=k` drafts with fewer heads, and 1 decodes
    plainly. A model that was loaded with `trust_remote_code=True` has this as its `generate`."""
    arguments = {key: value for key, value in arguments.items() if key not in ("custom_generate", "trust_remote_code")}
    return GenerationMixin.generate(model, inputs, custom_generate=decode, **arguments)


def decode(
    model, input_ids, logits_processor, stopping_criteria, generation_config, heads_used=None, streamer=None,
    **model_kwargs,
):  # fmt: skip
    """
    Raises:
        ValueError: several texts, or padding; more heads than there are; a search with beams.
    """
    heads_used = model.config.mtp_n_future if heads_used is None else heads_used
    mask = model_kwargs.get("attention_mask")
    if generation_config.num_beams != 1:
        raise ValueError("self-speculative decoding is greedy or samples: num_beams has to be 1")
    if input_ids.shape[0] != 1 or (mask is not None and not mask.all()):
        raise ValueError(f"self-speculative decoding takes one text without padding: got {input_ids.shape[0]} rows")
    if not 1 <= heads_used <= model.config.mtp_n_future:
        raise ValueError(f"heads_used is {heads_used}: this model has {model.config.mtp_n_future} prediction heads")

    def choose(h):
        """The model's own next token, given its state (1, 1, D): the text so far is `input_ids`."""
        scores = logits_processor(input_ids, model.lm_head(model.model.norm(h))[:, -1].float())
        return scores.softmax(-1).multinomial(1) if generation_config.do_sample else scores.argmax(-1, keepdim=True)

    path, drafting = DynamicCache(config=model.config), DynamicCache()
    block = input_ids  # new tokens, of which the first `certain` are known to be right
    certain = block.shape[1]
    while True:
        z, h = model.next_states(block, path)
        token = choose(h[:, certain - 1 : certain])
        while True:
            input_ids = _append(input_ids, token, streamer)
            if stopping_criteria(input_ids, None).all():
                if streamer is not None:
                    streamer.end()
                if generation_config.return_dict_in_generate:
                    return GenerateDecoderOnlyOutput(sequences=input_ids, past_key_values=path)
                return input_ids
            if certain == block.shape[1] or block[0, certain] != token:
                break
            certain += 1
            token = choose(h[:, certain - 1 : certain])
        if certain < block.shape[1]:
            path.crop(certain - block.shape[1])
        # `token` is certain and has not been read; the heads guess what follows it, out of what has been
        block = token
        if heads_used > 1:
            states = model.further_states(z[:, :certain], h[:, :certain], drafting, heads_used - 1)
            drafts = [logits.argmax(-1) for logits in model.further_logits([state[:, -1:] for state in states])]
            block = torch.cat([token, *drafts], dim=1)
        certain = 1


def _append(input_ids, token, streamer):
    if streamer is not None:
        streamer.put(token[0].cpu())
    return torch.cat([input_ids, token], dim=1)
