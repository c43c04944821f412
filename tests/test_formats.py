"""The table of tensor formats against the `gguf` package."""

import pytest
from layerlift.backends.formats import BY_ID, BY_NAME, FORMATS


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_each_format_has_the_id_and_sizes_of_the_gguf_package(fmt):
    import gguf

    if fmt.name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip(f"this gguf package does not know {fmt.name}")
    kind = gguf.GGMLQuantizationType[fmt.name]
    assert (fmt.id, fmt.block, fmt.nbytes) == (kind.value, *gguf.GGML_QUANT_SIZES[kind])


def test_no_format_of_the_gguf_package_up_to_our_newest_is_missing():
    import gguf

    newest = max(BY_ID)
    missing = [k.name for k in gguf.GGMLQuantizationType if k.value <= newest and k.name not in BY_NAME]
    assert not missing


def test_names_and_ids_are_unique():
    assert len(BY_NAME) == len(BY_ID) == len(FORMATS)


@pytest.mark.parametrize(("name", "columns", "nbytes"), [("F32", 3, 12), ("Q4_0", 64, 36), ("Q6_K", 512, 420)])
def test_a_row_takes_its_blocks(name, columns, nbytes):
    assert BY_NAME[name].row_nbytes(columns) == nbytes
