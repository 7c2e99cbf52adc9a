"""The pixel operations of the CPU engine, on batches of numpy arrays, by OpenCV and numpy."""

from __future__ import annotations

import math

import numpy as np

from pipeline.engines.noise_field import normal_field
from pipeline.engines.vocabulary import BRIGHTNESS


class CpuOps:
    """The operations on batches of numpy arrays: images are uint8 (n, h, w, 3). See `pipeline.engines.vocabulary.Ops`."""

    def __init__(self, size: int) -> None:
        import cv2

        self.size, self._cv2 = size, cv2

    def rotate90(self, image: np.ndarray, turns: np.ndarray) -> np.ndarray:
        out = np.empty_like(image)
        codes = {1: self._cv2.ROTATE_90_COUNTERCLOCKWISE, 2: self._cv2.ROTATE_180, 3: self._cv2.ROTATE_90_CLOCKWISE}

        for row, count in enumerate(turns.tolist()):
            if count % 4:
                self._cv2.rotate(image[row], codes[count % 4], dst=out[row])
            else:
                out[row] = image[row]
        return out

    def erase(self, image: np.ndarray, boxes: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
        out = image.copy()
        for row, of_row in enumerate(boxes.tolist()):
            for top, left, height, width in of_row:
                self._cv2.rectangle(out[row], (left, top, width, height), fill, self._cv2.FILLED)
        return out

    def gray(self, image: np.ndarray) -> np.ndarray:
        out = np.empty((*image.shape[:3], 1), np.uint8)
        for row in range(len(image)):
            self._cv2.cvtColor(image[row], self._cv2.COLOR_RGB2GRAY, dst=out[row, :, :, 0])
        return out

    def drop_colour(self, image: np.ndarray, where: np.ndarray) -> np.ndarray:
        out = image.copy()
        for row in np.flatnonzero(where):
            brightness = self._cv2.cvtColor(image[row], self._cv2.COLOR_RGB2GRAY)
            self._cv2.cvtColor(brightness, self._cv2.COLOR_GRAY2RGB, dst=out[row])
        return out

    def patches(self, image: np.ndarray, corners: np.ndarray, side: int, count: int) -> np.ndarray:
        out = np.empty((len(corners), count, side, side, 3), np.uint8)
        for row, of_row in enumerate(corners.tolist()):
            for k, (top, left) in enumerate(of_row):
                out[row, k] = image[row, top : top + side, left : left + side]
        return out

    def noise(self, image: np.ndarray, corners: np.ndarray, gain: np.ndarray, level: np.ndarray) -> np.ndarray:
        out, field = np.empty_like(image), normal_field(self.size)
        (height, width), places = image.shape[1:3], corners.tolist()

        for row in range(len(image)):
            slope, floor = np.float32(gain[row]), np.float32(level[row])
            if not (slope or floor):
                out[row] = image[row]
                continue
            (top, left), (top2, left2) = places[row]
            noise = field[top : top + height, left : left + width] + field[top2 : top2 + height, left2 : left2 + width]
            pixels = image[row].astype(np.float32)
            noise *= np.float32(0.5**0.5) * (np.sqrt(pixels * slope + floor * floor) if slope else floor)
            noise += pixels
            np.rint(noise, out=noise)
            np.clip(noise, 0, 255, out=noise)
            out[row] = noise
        return out

    def blur(self, image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        out = np.empty_like(image)

        for row in range(len(image)):
            if width := float(sigma[row]):
                window = 2 * math.ceil(3 * np.float32(width)) + 1
                pixels = image[row].astype(np.float32)  # in float: for uint8 OpenCV sums in fixed point, up to two levels off
                pixels = self._cv2.GaussianBlur(pixels, (window, window), width, borderType=self._cv2.BORDER_REFLECT_101)
                out[row] = np.rint(pixels)
            else:
                out[row] = image[row]
        return out

    def recolour(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        out, matrix = np.empty_like(image), matrix.astype(np.float32)

        for row in range(len(image)):  # in float: for uint8 OpenCV sums in fixed point, often a level off
            out[row] = np.clip(np.rint(self._cv2.transform(image[row].astype(np.float32), matrix[row])), 0, 255)
        return out

    def reduce(self, image: np.ndarray, factor: int) -> np.ndarray:
        total = np.full(
            (len(image), image.shape[1] // factor, image.shape[2] // factor, 3),
            factor**2 // 2,
            np.uint16 if factor <= 16 else np.uint32,
        )
        for y in range(factor):
            for x in range(factor):
                total += image[:, y::factor, x::factor]
        return (total // factor**2).astype(np.uint8)

    def affine(self, image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
        out = np.empty((len(image), side, side, 3), np.uint8)
        centres = matrix.astype(np.float64)  # OpenCV's coordinates start at the first pixel's centre
        centres[:, :, 2] += centres[:, :, :2].sum(axis=2) * 0.5 - 0.5
        flags = self._cv2.INTER_LINEAR | self._cv2.WARP_INVERSE_MAP

        for row in range(len(image)):
            self._cv2.warpAffine(
                image[row], centres[row], (side, side), dst=out[row], flags=flags, borderMode=self._cv2.BORDER_REPLICATE
            )
        return out

    def jitter(self, image: np.ndarray, matrix: np.ndarray, of_mean: np.ndarray) -> np.ndarray:
        out, pixels, matrix = np.empty_like(image), np.empty(image.shape[1:], np.float32), matrix.astype(np.float32)

        for row in range(len(image)):  # in float, as in `recolour`
            if not of_mean[row] and (matrix[row] == np.eye(3)).all():
                out[row] = image[row]
                continue
            shift = of_mean[row] * np.dot(self._cv2.mean(image[row])[:3], BRIGHTNESS)
            pixels[:] = image[row]
            changed = self._cv2.transform(pixels, np.column_stack([matrix[row], np.full(3, shift, np.float32)]))
            self._cv2.add(changed, 0, dst=out[row], dtype=self._cv2.CV_8U)  # type: ignore[call-overload]  # rounds and clips
        return out

    def solarise(self, image: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        out, values = image.copy(), np.arange(256)
        for row in np.flatnonzero(threshold < 256):
            table = np.where(values >= threshold[row], 255 - values, values).astype(np.uint8)
            self._cv2.LUT(image[row], table, dst=out[row])
        return out

    def paste(self, image: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask[..., None].astype(bool), other, image)
