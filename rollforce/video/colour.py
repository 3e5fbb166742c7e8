"""HDR pictures for screens that have none: PQ and HLG in BT.2020 become BT.709.

Source: ITU-R BT.2100 (both curves, the 1000 nit display of HLG), BT.2408 (white of a picture at 203 nit), BT.2087
(primaries). Up to three quarters of white, light stays as it is; above it is rolled off, so that what is 1000 nit
bright is just white."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFilter import Color3DLUT

Curve = Literal["PQ", "HLG"]
TRANSFERS: dict[int, Curve] = {16: "PQ", 18: "HLG"}  # numbers of ITU-T H.273
_WHITE, _PEAK = 203.0, 1000.0  # nit
_KNEE = 0.75
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
_POINTS = 65  # of the table, on each side


def to_sdr(signal: np.ndarray, curve: Curve) -> np.ndarray:
    """Return BT.709 values [..., 3] in 0..1, for a display of gamma 2.4, of an HDR signal [..., 3] in 0..1."""
    light = (_pq if curve == "PQ" else _hlg)(signal.astype(np.float64)) / _WHITE
    light = np.clip(light @ _TO_BT709.T, 0, None)
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-9)
    return np.clip(light * (_roll_off(brightest) / brightest), 0, 1) ** (1 / 2.4)


def map_picture(picture_HWC: np.ndarray, curve: Curve) -> np.ndarray:
    """Return a picture uint8 [H, W, 3] whose values are an HDR signal as one for a common screen."""
    from PIL import Image

    return np.asarray(Image.fromarray(picture_HWC).filter(_table(curve)))


def _pq(signal: np.ndarray) -> np.ndarray:
    """Nit of a PQ signal (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """Nit of an HLG signal on a display of 1000 nit, whose system gamma is 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593])
    return _PEAK * scene * np.maximum(luma, 1e-9)[..., None] ** 0.2


def _roll_off(light: np.ndarray) -> np.ndarray:
    """Return light (1: white) with what is above the knee bent towards 1, which the peak reaches."""
    over, peak = (np.maximum(value - _KNEE, 0) / (1 - _KNEE) for value in (light, np.float64(_PEAK / _WHITE)))
    return np.minimum(light, _KNEE) + (1 - _KNEE) * over * (1 + over / peak**2) / (1 + over)


@cache
def _table(curve: Curve) -> Color3DLUT:
    from PIL.ImageFilter import Color3DLUT

    steps = np.linspace(0, 1, _POINTS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # red runs fastest
    values = to_sdr(np.stack([red, green, blue], axis=-1), curve)
    return Color3DLUT(_POINTS, values.astype(np.float32).ravel().tolist())
