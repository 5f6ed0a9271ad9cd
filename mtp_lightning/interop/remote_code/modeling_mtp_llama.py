# mypy: ignore-errors
"""A Llama with prediction heads in the Transformers MTP standard: what `generate(use_mtp=True)` needs to find them.

The heads are the layers after the last one of `config.num_hidden_layers` in the files. `transformers` reads them only
for a class that says so, and `LlamaForCausalLM` does not.
"""

from transformers import LlamaForCausalLM


class MtpLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        first = config.num_hidden_layers
        layers = "|".join(str(first + head) for head in range(config.num_nextn_predict_layers))
        self._keys_to_ignore_on_load_unexpected = {rf"model\.layers\.({layers})\..*"}
