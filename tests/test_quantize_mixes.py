"""Which type every weight gets: the tables of the mixes, fallbacks for odd rows, and what the user decides instead."""

from __future__ import annotations

import pytest
from layerlift.runtime.errors import UserError
from layerlift.runtime.quantize.mixes import Shape, Weight, Wishes, choose, fallback, more_bits
from layerlift.runtime.weight_types import MIXES, mix_named

D, FF, KV, VOCAB = 2048, 8192, 512, 1000


def weights(n_layers=16, d=D, ff=FF, *, tied=True, fmt="F16", kv=KV):
    found = [Weight("token_embd.weight", fmt, (VOCAB, d)), Weight("output_norm.weight", "F32", (d,))]
    found += [] if tied else [Weight("output.weight", fmt, (VOCAB, d))]
    for layer in reversed(range(n_layers)):  # the order in the file does not matter
        shapes = {
            "attn_norm": (d,),
            "attn_q": (d, d),
            "attn_k": (kv, d),
            "attn_v": (kv, d),
            "attn_output": (d, d),
            "ffn_gate": (ff, d),
            "ffn_up": (ff, d),
            "ffn_down": (d, ff),
        }
        found += [
            Weight(f"blk.{layer}.{name}.weight", "F32" if len(shape) == 1 else fmt, shape)
            for name, shape in shapes.items()
        ]
    return found


SHARING = Shape("llama", 16, 32, 8)  # Llama 3.2 1B: four heads share keys and values
PLAIN = Shape("llama", 16, 32, 32)


def chosen(mix, part, shape=SHARING, wishes=Wishes(), **more):  # noqa: B008
    formats = choose(weights(), mix_named(mix), shape, wishes, **more)
    return [formats[f"blk.{layer}.{part}.weight"] for layer in range(16)]


def test_a_mix_of_one_type_changes_the_head_alone():
    for mix in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K"):
        formats = choose(weights(), mix_named(mix), SHARING)
        assert formats.pop("token_embd.weight") == "Q6_K"
        assert set(formats.values()) == {mix, "F32"}


def test_q8_0_and_floats_are_the_same_throughout():
    for mix in ("Q8_0", "F16", "BF16"):
        assert set(choose(weights(), mix_named(mix), SHARING).values()) == {mix, "F32"}


def test_norms_and_vectors_stay_as_they_are():
    formats = choose(weights(), mix_named("Q4_K_M"), SHARING)
    assert {fmt for name, fmt in formats.items() if "norm" in name} == {"F32"}


def test_more_bits_go_to_the_ends_and_every_third_layer():
    assert [layer for layer in range(16) if more_bits(layer, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]
    # SmolLM2's 30 layers
    assert [layer for layer in range(30) if more_bits(layer, 30)] == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]


BITS = ["Q6_K" if more_bits(layer, 16) else None for layer in range(16)]


@pytest.mark.parametrize(("mix", "main"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
@pytest.mark.parametrize("part", ["attn_v", "ffn_down"])
def test_medium_mixes_spend_more_on_values_and_down(mix, main, part):
    assert chosen(mix, part) == [fmt or main for fmt in BITS]
    assert set(chosen(mix, "ffn_up") + chosen(mix, "attn_q") + chosen(mix, "attn_output")) == {main}


def test_small_mixes():
    assert chosen("Q4_K_S", "attn_v") == ["Q5_K"] * 4 + ["Q4_K"] * 12
    assert chosen("Q4_K_S", "ffn_down") == ["Q5_K"] * 2 + ["Q4_K"] * 14
    assert chosen("Q5_K_S", "attn_v") == chosen("Q5_K_S", "ffn_down") == ["Q5_K"] * 16
    assert chosen("Q3_K_S", "attn_v") == chosen("Q3_K_S", "ffn_down") == ["Q3_K"] * 16


def test_mixes_of_three_bits():
    assert chosen("Q3_K_M", "attn_v") == ["Q5_K"] * 2 + ["Q4_K"] * 14
    assert chosen("Q3_K_M", "ffn_down") == ["Q5_K"] + ["Q4_K"] * 15
    assert chosen("Q3_K_M", "attn_output") == ["Q4_K"] * 16
    assert (
        chosen("Q3_K_L", "attn_v") == chosen("Q3_K_L", "ffn_down") == chosen("Q3_K_L", "attn_output") == ["Q5_K"] * 16
    )
    assert chosen("Q3_K_M", "ffn_gate") == ["Q3_K"] * 16


def test_two_bits_depend_on_how_many_heads_share():
    assert chosen("Q2_K", "attn_v") == ["Q4_K"] * 16
    assert chosen("Q2_K", "attn_v", PLAIN) == ["Q3_K"] * 16
    assert chosen("Q2_K", "ffn_down") == chosen("Q2_K", "attn_output") == ["Q3_K"] * 16
    assert chosen("Q2_K", "ffn_up") == ["Q2_K"] * 16


def test_iq4_nl_and_what_an_imatrix_changes():
    assert chosen("IQ4_NL", "attn_v") == ["Q5_K"] * 16
    assert chosen("IQ4_NL", "attn_v", PLAIN) == ["IQ4_NL"] * 16
    assert chosen("IQ4_NL", "ffn_down") == ["Q5_K"] * 2 + ["IQ4_NL"] * 14
    assert chosen("IQ4_NL", "ffn_down", has_imatrix=True) == ["IQ4_NL"] * 16
    assert chosen("Q4_0", "ffn_down", has_imatrix=True) == ["Q4_1"] * 2 + ["Q4_0"] * 14
    assert chosen("Q5_0", "ffn_down", has_imatrix=True) == ["Q5_1"] * 2 + ["Q5_0"] * 14


def test_eighty_layers_of_llama_keep_their_values():
    big = choose(weights(80), mix_named("Q4_K_M"), Shape("llama", 80, 64, 8))
    assert {big[f"blk.{layer}.attn_v.weight"] for layer in range(80)} == {"Q5_K", "Q6_K"}


def test_eight_experts_keep_keys_and_values():
    experts = Shape("llama", 16, 32, 8, n_experts=8)
    assert set(chosen("Q4_K_M", "attn_v", experts) + chosen("Q4_K_M", "attn_k", experts)) == {"Q8_0"}
    assert set(chosen("Q4_K_M", "attn_output", experts)) == {"Q5_K"}


def test_an_untied_head_is_chosen_apart_from_the_embedding():
    formats = choose(weights(tied=False), mix_named("Q4_K_M"), SHARING)
    assert (formats["output.weight"], formats["token_embd.weight"]) == ("Q6_K", "Q4_K")


@pytest.mark.parametrize(
    ("fmt", "other"), [("Q2_K", "Q4_0"), ("Q3_K", "Q4_0"), ("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0")]
)
def test_rows_that_256_does_not_divide_get_blocks_of_32(fmt, other):
    assert fallback(fmt, 2048) == fmt
    assert fallback(fmt, 576) == other
    assert fallback(fmt, 300) == "F16"


def test_smollm2s_shapes():
    smollm = Shape("llama", 30, 9, 3)
    formats = choose(weights(30, 576, 1536, kv=192), mix_named("Q4_K_M"), smollm)
    assert formats["token_embd.weight"] == "Q8_0"
    assert formats["blk.0.attn_v.weight"] == "Q8_0"  # Q6_K's place
    assert formats["blk.3.attn_v.weight"] == "Q5_0"  # Q4_K's
    assert formats["blk.3.ffn_down.weight"] == "Q4_K"  # 1536 columns
    assert formats["blk.0.ffn_down.weight"] == "Q6_K"
    assert choose(weights(30, 576, 1536), mix_named("Q4_0"), smollm)["token_embd.weight"] == "Q8_0"


def test_the_users_wishes_come_first():
    formats = choose(weights(tied=False), mix_named("Q4_K_M"), SHARING, Wishes(output="Q8_0", embedding="F16"))
    assert (formats["output.weight"], formats["token_embd.weight"]) == ("Q8_0", "F16")
    formats = choose(weights(), mix_named("Q4_K_M"), SHARING, Wishes(output="Q5_1"))
    assert formats["token_embd.weight"] == "Q5_1"  # tied: it is the head
    formats = choose(weights(), mix_named("Q4_K_M"), SHARING, Wishes(pure=True))
    assert set(formats.values()) == {"Q4_K", "F32"}
    formats = choose(weights(tied=False), mix_named("Q4_0"), SHARING, Wishes(leave_output=True))
    assert formats["output.weight"] == "F16"


def test_a_wish_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="rows of 576, not a multiple of Q6_K's block of 256"):
        choose(weights(2, 576, 1536), mix_named("Q8_0"), SHARING, Wishes(embedding="Q6_K"))


def test_names_aliases_and_numbers():
    assert mix_named("q4_k").name == "Q4_K_M"
    assert mix_named("Q3_K").name == "Q3_K_M"
    assert mix_named("18").name == "Q6_K"
    assert len({mix.file_type for mix in MIXES}) == len(MIXES)
    with pytest.raises(UserError, match="unknown type 'Q9'"):
        mix_named("Q9")
