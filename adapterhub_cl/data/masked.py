"""Raw text → token ids for a masked language model: every id is masked once and has to be predicted."""

from __future__ import annotations

import random

from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example

TURNS = 7  # rows for each window: a seventh of its ids is masked in each, close to BERT's 15 %


class MaskedTokeniser(LabelledTokeniser):
    """Tokenises raw text as well as labelled examples.

    A window of text becomes `TURNS` rows (fewer if it has fewer ids); which ids are masked in which row depends only
    on the text, and together the rows mask each id once.
    """

    def __call__(self, example: Example) -> Tokens:
        if not self._raw_text(example):
            return super().__call__(example)
        found = self.windows(example)
        return found[0] if found else Tokens((), ())

    def windows(self, example: Example) -> list[Tokens]:
        if not self._raw_text(example):
            return [super().__call__(example)]
        if self.tokenizer.mask_token_id is None:
            raise DataError("the tokenizer of this base has no mask token", "set mask_token in tokenizer_config.json")
        read = self.tokenizer(
            example.answer or example.input,
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        rows = zip(read.input_ids, read.special_tokens_mask, strict=True)
        return [row for ids, special in rows for row in self._turns(ids, special)]

    def _raw_text(self, example: Example) -> bool:
        return self.task.kind == "text" or example.is_raw

    def _turns(self, ids: list[int], special: list[int]) -> list[Tokens]:
        places = [k for k, is_special in enumerate(special) if not is_special]
        random.Random(str(ids)).shuffle(places)
        found = []
        for turn in range(min(TURNS, len(places))):
            hidden = sorted(places[turn::TURNS])
            read = [self.tokenizer.mask_token_id if k in set(hidden) else token for k, token in enumerate(ids)]
            found.append(Tokens(tuple(read), tuple(ids[k] for k in hidden), hidden=tuple(hidden)))
        return found
