"""jaxtyping's array annotations where it is installed (tests, development), plain tensors where it is not.

`Int[Tensor, "B L"]` documents a shape for the reader and is checked in the tests. A training machine needs only
torch: there the annotation is just `Tensor`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Unchecked:
            """Stands in for a jaxtyping dtype: `_Unchecked[Tensor, "B T"]` is `Tensor`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = _Unchecked

__all__ = ["Bool", "Float", "Int"]
