import sys
from types import ModuleType

import pytest
import torch

from rollforce.errors import ConfigError
from rollforce.models.transformer import attention
from rollforce.models.transformer.attention import BACKENDS, EVERYWHERE, available, kernel
from rollforce.training.causal_masking import additive, block_causal, teacher_forcing


def test_kernels_agree():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = additive(torch.rand(5, 7) > 0.3)
    torch.testing.assert_close(kernel("plain")(q, k, v, mask), kernel("sdpa")(q, k, v, mask))


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_a_float32_mask(name, dtype):
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = additive(torch.rand(5, 7) > 0.3)
    out = kernel(name)(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), kernel(name)(q, k, v, mask), rtol=0.05, atol=0.05)


def test_unknown_kernel_lists_the_known():
    with pytest.raises(ConfigError, match="sdpa.*flash_hub.*cudnn"):
        kernel("flash9")


CPU = torch.device("cpu")
BF16 = torch.bfloat16


def test_what_is_missing_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"attention 'flash' needs flash-attn>=2.6.3: pip install.*'sdpa' works now"):
        kernel("flash", CPU, BF16)
    with pytest.raises(ConfigError, match="'flash_hub' needs.*downloads a prebuilt kernel: pip install kernels"):
        kernel("flash_hub", CPU, BF16)
    reasons = available(CPU)
    assert list(reasons) == [*EVERYWHERE, *BACKENDS]
    assert reasons["sdpa"] == reasons["plain"] == "" and "not installed" in reasons["sage"]


class Gpu:
    """Makes torch believe in a GPU, and a package be installed; kernels still compute on the CPU."""

    def __init__(self, monkeypatch, capability=(9, 0)):
        self.calls = []
        monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: ModuleType(name))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *shape, **there: zeros(*shape))  # what a kernel is tried on
        for name, module in self.modules().items():
            monkeypatch.setitem(sys.modules, name, module)

    def modules(self):
        def flash(q, k, v):  # [B, L, N, K]
            self.calls.append("flash")
            return EVERYWHERE["plain"](*(x.transpose(1, 2) for x in (q, k, v)), None).transpose(1, 2)

        def sage(q, k, v, tensor_layout, is_causal):
            assert tensor_layout == "HND" and not is_causal
            return EVERYWHERE["plain"](q, k, v, None)

        made = {name: ModuleType(name) for name in ("flash_attn", "flash_attn_interface", "kernels", "sageattention")}
        made["flash_attn"].flash_attn_func = flash
        made["flash_attn_interface"].flash_attn_func = lambda q, k, v: (flash(q, k, v), None)  # and log-sum-exp
        made["kernels"].get_kernel = lambda name: made["flash_attn"]
        made["sageattention"].sageattn = sage
        return made


GPU = torch.device("cuda")


@pytest.mark.parametrize("name", ["flash", "flash3", "flash_hub", "sage"])
def test_packages_are_called_in_their_own_order_of_axes(name, monkeypatch):
    Gpu(monkeypatch)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    torch.testing.assert_close(kernel(name, GPU)(q, k, v, None), kernel("sdpa")(q, k, v, None))
    with pytest.raises(ConfigError, match="knows no mask. Use one of: sdpa, plain"):
        kernel(name, GPU)(q, k, v, additive(torch.ones(5, 7, dtype=torch.bool)))
    with pytest.raises(ConfigError):
        kernel(name, GPU, masked=True)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "capability", "words"),
    [
        ("flash", CPU, BF16, (9, 0), "needs an NVIDIA GPU; this is cpu"),
        ("flash3", GPU, BF16, (8, 9), "needs a GPU of sm_90 or later; this is a Tesla T4"),
        ("cudnn", GPU, BF16, (7, 5), "sm_80 or later"),
        ("sage", GPU, torch.float32, (9, 0), "needs bfloat16 or float16; the weights are float32"),
    ],
)
def test_a_device_that_is_not_for_it(name, device, dtype, capability, words, monkeypatch):
    Gpu(monkeypatch, capability)
    with pytest.raises(ConfigError, match=f"{words}.*'sdpa' works now"):
        kernel(name, device, dtype)
    assert words.split(";")[0] in available(device, dtype)[name]


@pytest.mark.parametrize("error", [ImportError("undefined symbol: _ZN3c10"), RuntimeError("no kernel image")])
def test_a_package_that_is_there_and_does_not_run_is_found_out_when_chosen(error, monkeypatch):
    modules = Gpu(monkeypatch).modules()

    def broken(q, k, v):
        raise error

    modules["flash_attn"].flash_attn_func = broken
    monkeypatch.setitem(sys.modules, "flash_attn", modules["flash_attn"])
    with pytest.raises(ConfigError, match=f"'flash' does not run here .{error}.*'sdpa' works now"):
        kernel("flash", GPU)
    assert str(error) in available(GPU)["flash"]


def test_looking_downloads_nothing(monkeypatch):
    Gpu(monkeypatch)
    downloaded = []
    monkeypatch.setattr(sys.modules["kernels"], "get_kernel", downloaded.append)
    assert available(GPU)["flash_hub"] == "" and not downloaded


def test_a_model_finds_out_when_the_kernel_is_chosen(model):
    with pytest.raises(ConfigError):
        model.set_attention("cudnn")
    model.set_attention("plain", masked=True)
    model.set_attention("sdpa")


def seen(mask, query, tokens):
    return [i for i in range(mask.shape[1] // tokens) if mask[query * tokens, i * tokens]]


def test_block_causal_by_hand():
    mask = block_causal(6, 2, tokens=2)
    assert seen(mask, 0, 2) == [0, 1] and seen(mask, 3, 2) == [0, 1, 2, 3]
    assert seen(block_causal(6, 2, 1, window=3), 5, 1) == [3, 4, 5]
    assert seen(block_causal(5, 2, 1, first=1), 1, 1) == [0, 1, 2]  # 0 | 1 2 | 3 4


def test_teacher_forcing_by_hand():
    mask = teacher_forcing(4, 2, tokens=1)  # clean 0..3, noisy 4..7
    assert seen(mask, 3, 1) == [0, 1, 2, 3] and seen(mask, 4, 1) == [4, 5] and seen(mask, 7, 1) == [0, 1, 6, 7]
