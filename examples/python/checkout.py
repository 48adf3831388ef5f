"""A checkout over HTTP, with FastAPI and the client shop-client.

    pip install shop-client fastapi uvicorn
    uvicorn checkout:app

The SHOP_* variables say where the APIs are, and how long a call may take; see docs/client.md. Copy this file, then
replace `PRICES` by your catalogue and `current_user` by your login.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Annotated, TypedDict

from fastapi import Depends, FastAPI, Header, HTTPException, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from shop_client import AsyncShop, NewItem, Order, OrderStatus, ShopError, errors

CURRENCY = "EUR"
PRICES = {1: Decimal("19.99")}  # the price is never the buyer's to name
HOLD_SECONDS = 900  # the buyer has so long to pay


class State(TypedDict):
    """What the requests share."""

    shop: AsyncShop


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    """One client for the whole process: it sends concurrent requests in one batch."""
    async with AsyncShop() as shop:
        yield State(shop=shop)


app = FastAPI(title="Checkout", lifespan=lifespan)


def shared_shop(request: Request) -> AsyncShop:
    shop: AsyncShop = request.state.shop
    return shop


def current_user(x_user: Annotated[int, Header(gt=0)]) -> int:
    """Return the buyer. Here a header names it; in production take it from a session or a token."""
    return x_user


Shop = Annotated[AsyncShop, Depends(shared_shop)]
User = Annotated[int, Depends(current_user)]
# Chosen by the page, once for each cart. A repeated request creates no second order. A key belongs to its buyer.
Key = Annotated[str, Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9_-]{8,64}$")]


class CartLine(BaseModel):
    """Units of one product."""

    product_id: int = Field(gt=0)
    quantity: int = Field(gt=0, le=100)


class Cart(BaseModel):
    """What the buyer wants."""

    lines: list[CartLine] = Field(min_length=1, max_length=50)


class OrderView(BaseModel):
    """An order as the buyer sees it."""

    id: str
    status: str
    total: Decimal
    currency: str
    pay_until: datetime | None

    @classmethod
    def of(cls, order: Order) -> "OrderView":
        pay_until = order.reserved_until if order.status is OrderStatus.PENDING else None
        total, currency = order.total_amount, order.currency
        return cls(id=order.id, status=order.status, total=total, currency=currency, pay_until=pay_until)


@app.get("/products/{product_id}/stock")
async def stock(product_id: Annotated[int, Path(gt=0, lt=2**63)], shop: Shop) -> dict[str, int]:
    found = await shop.check_stock(product_id)
    return {"available": found.available_quantity}


@app.post("/orders", status_code=201)
async def create_order(cart: Cart, user: User, key: Key, shop: Shop) -> OrderView:
    """Reserve the stock of all lines, or of none, and create the order."""
    unknown = [line.product_id for line in cart.lines if line.product_id not in PRICES]
    if unknown:
        raise HTTPException(404, f"not in the catalogue: {unknown}")
    items = [NewItem(line.product_id, line.quantity, PRICES[line.product_id]) for line in cart.lines]
    return OrderView.of(await shop.create_order(user, items, CURRENCY, ttl_seconds=HOLD_SECONDS, request_id=key))


async def own_order(order_id: str, user: User, shop: Shop) -> Order:
    """Return the order, if it is the buyer's. Another buyer's order looks like one that does not exist."""
    order = await shop.get_order(order_id)
    if order.user_id != user:
        raise HTTPException(404, "no such order")
    return order


OwnOrder = Annotated[Order, Depends(own_order)]


@app.get("/orders/{order_id}")
async def get_order(order: OwnOrder) -> OrderView:
    return OrderView.of(order)


@app.post("/orders/{order_id}/confirmation")
async def confirm_order(order: OwnOrder, shop: Shop) -> OrderView:
    """Confirm the order. Authorize the payment before this, and capture it after this has succeeded.

    If it fails with RESERVATION_EXPIRED, the order is cancelled: release the authorization.
    """
    return OrderView.of(await shop.update_order_status(order.id, OrderStatus.CONFIRMED))


@app.post("/orders/{order_id}/cancellation")
async def cancel_order(order: OwnOrder, shop: Shop) -> OrderView:
    """Cancel the order. Its stock is available again soon."""
    return OrderView.of(await shop.update_order_status(order.id, OrderStatus.CANCELLED, reason="by the buyer"))


# The status of each kind of error; the reason tells errors of one kind apart. Any other error is ours, not the buyer's.
STATUSES: dict[type[ShopError], int] = {
    errors.InvalidInput: 422,
    errors.NotFound: 404,
    errors.Refused: 409,
    errors.Conflict: 409,
    errors.Overload: 503,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}


@app.exception_handler(ShopError)
async def problem(_: Request, error: ShopError) -> JSONResponse:
    """Return an error as a problem (RFC 9457) whose `reason` is stable, so that the page can branch on it."""
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
    if status == 500:  # such as a missing permission of this program: log it, and keep it from the buyer
        return problem_response(500, "INTERNAL", "the checkout failed")
    extra: dict[str, object] = {}
    if isinstance(error, errors.InsufficientStock):
        extra = {"product_id": error.product_id, "available": error.available}
    elif isinstance(error, errors.IllegalTransition):
        extra = {"legal": error.legal}
    response = problem_response(status, error.reason, error.message, **extra)
    if status in {503, 504}:
        response.headers["Retry-After"] = str(round(error.retry_after_seconds or 1) or 1)
    return response


def problem_response(status: int, reason: str, detail: str, **extra: object) -> JSONResponse:
    content = {"status": status, "reason": reason, "detail": detail, **extra}
    return JSONResponse(content, status, media_type="application/problem+json")
