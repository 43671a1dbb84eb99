"""Check whether a window can open here, and what is missing."""

from __future__ import annotations

import os
import sys
from typing import Any

from pc3d._extras import require


class NoDisplayError(RuntimeError):
    """There is no display to open a window on."""


def check_display() -> None:
    """Raise an error without a display, before a library crashes.

    Raises:
        NoDisplayError: there is none.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise NoDisplayError(
            "there is no display to open a window on (DISPLAY is not set): write a picture with --output picture.png, "
            "a page with --html page.html, or serve one with --web"
        )


def import_open3d() -> Any:
    """Import Open3D, or raise an error that names the system libraries that its window needs.

    Raises:
        ImportError: it is not installed, or a library is missing.
    """
    try:
        return require("open3d", extra="viz", purpose="the window of pc3d view")
    except ImportError as error:
        if ".so" not in str(error):
            raise
        raise ImportError(
            f"{error}: on Debian and Ubuntu, apt-get install libusb-1.0-0 libgl1 libegl1 libvulkan1 "
            "mesa-vulkan-drivers brings what Open3D needs; --output, --html and --web need none of it"
        ) from error
