"""`/v1/products`: kinds of devices."""

from fastapi import APIRouter

from engine.api.access import Operator, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.products import create_product, get_product
from engine.store.products import Product, list_products

router = APIRouter(tags=["devices"])


class ProductNew(Body):
    model_config = example({"name": "thermometer"})

    name: str


class ProductShown(Shown):
    id: str
    name: str
    created_at: str


@router.post("/v1/products", status_code=201, responses=problems(409, 422, body=True))
async def add_product(platform: PlatformHere, access: Operator, body: ProductNew) -> ProductShown:
    """Make a product."""
    return _shown(await create_product(platform, access.project_id, body.name))


@router.get("/v1/products", responses=problems(422))
async def show_products(
    platform: PlatformHere, access: Reader, page: PageAsked
) -> Listed[ProductShown]:
    """List products, newest first."""
    found = await platform.database.read(list_products, access.project_id, page)
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.get("/v1/products/{product}", responses=problems(404))
async def show_product(platform: PlatformHere, access: Reader, product: str) -> ProductShown:
    """Show one product, by id or name."""
    return _shown(await get_product(platform, access.project_id, product))


def _shown(product: Product) -> ProductShown:
    return ProductShown(id=product.id, name=product.name, created_at=iso(product.created_ms))
