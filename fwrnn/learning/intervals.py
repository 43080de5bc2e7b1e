"""How far a measured share can be trusted."""

import math


def wilson(mean: float, count: int, least: float, most: float) -> tuple[float, float]:
    """The 95 % interval of Wilson for a mean of ``count`` numbers that are ``least`` or ``most``.

    It holds where the mean is an end of the range too. For numbers in between it is too wide.
    """
    z, width = 1.959964, most - least
    share = (mean - least) / width
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = (least + width * (centre + sign * half) / (1 + z * z / count) for sign in (-1, 1))
    return max(least, min(low, mean)), min(most, max(high, mean))  # rounding aside
