"""What the commands that show something print with --json."""

from __future__ import annotations

import json
from typing import Any


def as_json_text(value: Any) -> str:
    def plain(item: Any) -> Any:
        if hasattr(item, "__dataclass_fields__"):
            return {name: getattr(item, name) for name in item.__dataclass_fields__}
        return str(item)

    return json.dumps(value, default=plain, ensure_ascii=False, indent=1)
