"""A request whose logits are not finite, through a gateway and real engines: it alone fails, and says why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.served_model import serve
from tests.support.tiny_models import ids_of, save_tiny_llama


def save_model_that_cannot_take(path: Path, token_id: int) -> Path:
    """Save a tiny model in which one token's embedding is NaN, and which never draws that token."""
    model = save_tiny_llama(path)
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token_id] = torch.nan
    weights["lm_head.weight"][token_id] = 0.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


async def test_the_bad_one_fails_and_the_others_go_on(tmp_path: Path) -> None:
    model = save_model_that_cannot_take(tmp_path / "tiny", ids_of("Z")[0])
    async with serve(model, max_retries=1) as served:

        async def complete(prompt: str) -> str:
            answer = await served.client.completions.create(
                model="tiny", prompt=prompt, max_tokens=40, temperature=0, extra_body={"ignore_eos": True}
            )
            return answer.choices[0].text

        good = [f"number {i} of several prompts" for i in range(6)]
        alone = [await complete(prompt) for prompt in good]
        bad = "a prompt of two blocks and more that ends in Z"
        *answers, error = await asyncio.gather(*map(complete, [*good, bad]), return_exceptions=True)
        assert answers == alone
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 500
        assert "logits that are not finite" in error.message
        with pytest.raises(openai.InternalServerError):
            await complete(bad)
        assert await complete(bad[:-1]), "what is left in blocks and caches spoils nothing"
